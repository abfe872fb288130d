"""`snapgen-deploy verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snapgen_deploy.cli.console import print_json, progress, say
from snapgen_deploy.cli.options import AsJson, Verbose
from snapgen_deploy.cli.result import count_verdicts, print_gates
from snapgen_deploy.system.child import preload
from snapgen_deploy.system.processors import default_threads


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle that `export` wrote.")],
    *,
    hashes_only: Annotated[bool, typer.Option("--hashes-only", help="Check the files' hashes only.")] = False,
    key: Annotated[
        Path | None, typer.Option(help="Public key (PEM) of who must have signed the bundle.", metavar="KEY")
    ] = None,
    golden: Annotated[
        Path | None, typer.Option(help="Golden vectors to hold the files against. Default: the bundle's own.", metavar="FILE")
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(
            help="Run the files on another machine instead, such as arm64 or arm64:cortex-a53 (see `setup`). Repeatable.",
            metavar="MACHINE",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads. Default: all.")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Check that a bundle is what was exported, and run its gates again from its files and test vectors.

    Hashes and gates show damage and contradictions; who made the bundle, a signature alone can say (--key).

    Fidelity gates, and those of the reference, need the checkpoint: they are not_run, with their verdict at export.
    """
    if not hashes_only:  # the server that checks are forked from imports what they need while this process does
        preload(("torch", "snapgen_deploy.check.gates"))
    from snapgen_deploy.bundle.reader import check_hashes, open_bundle
    from snapgen_deploy.check.verify import rerun_gates
    from snapgen_deploy.machines.registry import machine_of

    machines = list(dict.fromkeys(machine_of(name).key for name in on or ()))
    opened = open_bundle(bundle)
    check_hashes(opened)
    if key is not None:
        from snapgen_deploy.bundle.signature import verify_signature

        verify_signature(opened.path, key)
    gates = () if hashes_only else rerun_gates(opened, threads or default_threads(), progress(quiet=as_json), golden, machines)
    data = [g.as_dict() for g in gates]
    if as_json:
        signed = {"signature": "passed"} if key is not None else {}
        print_json({"bundle": str(opened.path), "hashes": "passed", **signed, "gates": data})
    else:
        say(f"{opened.path}: every file is what was exported" + (f", signed by the owner of {key}" if key else ""))
        if gates:
            print_gates(data)
            say(count_verdicts(data))
    if any(g.verdict == "failed" for g in gates):
        raise typer.Exit(1)
