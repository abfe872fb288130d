"""`snapgen-deploy bundle`: commands about bundles as an app ships them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snapgen_deploy.cli.console import megabytes, new_table, out, print_json, save_text, say
from snapgen_deploy.cli.options import AsJson, Verbose

if TYPE_CHECKING:
    from snapgen_deploy.bundle.update import BundleUpdate


def diff(
    older: Annotated[Path, typer.Argument(help="The bundle that devices have.", metavar="OLDER")],
    newer: Annotated[Path, typer.Argument(help="The bundle that they shall have.", metavar="NEWER")],
    target: Annotated[
        list[str] | None, typer.Option(help="Target that the app ships, repeatable. Default: all.", metavar="NAME")
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show what an update from one bundle to another downloads.

    Files are told apart by the hashes in both manifests, which `verify` checks. A file whose content the older bundle has under
    any name is not downloaded.
    """
    from snapgen_deploy.bundle.reader import open_bundle
    from snapgen_deploy.bundle.update import update_of

    before, after = open_bundle(older), open_bundle(newer)
    found = update_of(before, after, target or ())
    if as_json:
        print_json({"bytes": found.bytes, "download": found.download, "parts": [asdict(part) for part in found.parts]})
    else:
        _print(found)


def bom(
    bundle: Annotated[Path, typer.Argument(help="A bundle that `export` wrote.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write. Default: standard output.")] = None,
    verbose: Verbose = False,
) -> None:
    """Write a bundle's bill of materials, CycloneDX 1.6 in JSON.

    It names every model with its files, hashes, licence, inputs, outputs and gates, and the checkpoint that it comes from.
    """
    from snapgen_deploy.bundle.bom import as_text, bill_of_materials
    from snapgen_deploy.bundle.reader import check_hashes, open_bundle

    opened = open_bundle(bundle)
    check_hashes(opened)
    document = bill_of_materials(opened)
    if output is None:
        print_json(document)
    else:
        save_text(output, as_text(document))
        say(f"{output}: {len(document['components'])} models, their licences and hashes")


def _print(found: BundleUpdate) -> None:
    table = new_table()
    table.add_column("part", overflow="fold")
    for name in ("size", "download", "files"):
        table.add_column(name, justify="right", no_wrap=True)
    for part in found.parts:
        gone = f", {len(part.removed)} removed" if part.removed else ""
        table.add_row(part.name, megabytes(part.bytes), megabytes(part.download), f"{len(part.changed)} new{gone}")
    out().print(table)
    share = f" ({found.download / found.bytes:.0%})" if found.bytes else ""
    out().print(f"an update downloads {megabytes(found.download)} of {megabytes(found.bytes)}{share}")
