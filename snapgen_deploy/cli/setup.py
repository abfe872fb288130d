"""`snapgen-deploy setup`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snapgen_deploy.cli.console import print_json, progress, say
from snapgen_deploy.cli.options import AsJson, Verbose
from snapgen_deploy.errors import BadInput


def setup(
    machine: Annotated[str, typer.Argument(help="arm64: an emulated Arm processor.", metavar="MACHINE")],
    *,
    qemu: Annotated[Path | None, typer.Option(help="A qemu-aarch64 of your own, in place of Debian's.", metavar="FILE")] = None,
    executorch: Annotated[
        bool, typer.Option("--executorch", help="Fetch ExecuTorch's runtime, too: 440 MB more, most of it PyTorch.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Fetch all again.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Fetch another machine to run exported files on here, into the cache: through apt-get and pip as they are configured."""
    from snapgen_deploy.machines.arm64.fetch import fetch
    from snapgen_deploy.machines.arm64.machine import NAME

    if machine != NAME:
        raise BadInput(f"unknown machine '{machine}': expected {NAME}")
    done = fetch(progress(quiet=as_json), qemu=qemu, overwrite=overwrite, programs=executorch)
    if as_json:
        print_json({"machine": machine, "folder": str(done.folder), "versions": done.versions})
    else:
        said = ", ".join(f"{name} {version}" for name, version in done.versions.items())
        say(f"{machine}: {said}, in {done.folder}")
