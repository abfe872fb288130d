"""`snapgen-deploy serve`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from snapgen_deploy.cli.console import say
from snapgen_deploy.cli.options import Packages, Verbose


def serve_bundle(
    bundle: Annotated[Path, typer.Argument(help="A bundle that `export --device web` wrote.")],
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port here; 0 takes any free one.", metavar="N")] = 8765,
    packages: Packages = None,
    verbose: Verbose = False,
) -> None:
    """Serve a bundle's web app to browsers on this computer, until it is interrupted.

    It listens on this computer's own address alone and answers with the site's files only. The page checks their hashes.
    """
    from snapgen_deploy.apps.serving import address_of, serving
    from snapgen_deploy.apps.site import site_of
    from snapgen_deploy.bundle.reader import open_bundle

    with serving(site_of(open_bundle(bundle), packages), port) as server:
        say(f"open {address_of(server)}   (Ctrl-C ends it)")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
