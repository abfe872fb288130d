"""The command `snapgen-deploy`: the command line, or one line that says what to install for it."""

from __future__ import annotations

import json
import sys

from snapgen_deploy.extras import TO_EXPORT, NotInstalled, need


def start_command() -> None:
    """Entry point of the `snapgen-deploy` command."""
    try:
        need(TO_EXPORT, "snapgen-deploy")
    except NotInstalled as error:
        print(f"error: {error}", file=sys.stderr)
        if "--json" in sys.argv:
            print(json.dumps({"error": str(error), "exit_code": error.exit_code}))
        sys.exit(error.exit_code)
    from snapgen_deploy.cli import main

    main()
