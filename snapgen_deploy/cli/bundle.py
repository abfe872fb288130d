"""`snapgen-deploy bundle`: commands about bundles as an app ships them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snapgen_deploy.cli.console import megabytes, new_table, out, print_json, save_text, say
from snapgen_deploy.cli.options import AsJson, Packages, Verbose

if TYPE_CHECKING:
    from snapgen_deploy.bundle.update import BundleUpdate
    from snapgen_deploy.bundle.watch import Watched


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


def watch(
    bundle: Annotated[Path, typer.Argument(help="The bundle that was shipped.")],
    record: Annotated[Path, typer.Argument(help="Lines that its apps recorded, one a picture.", metavar="RECORD")],
    before: Annotated[
        Path | None, typer.Option(help="Lines of the release before, to compare times with.", metavar="RECORD")
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Say whether a staged rollout may go on: failures, time, memory and heat of recorded pictures beside the bundle's limits.

    Exit code 1: one is over its limit. 3: there are too few pictures to say.
    """
    from snapgen_deploy.bundle.reader import open_bundle
    from snapgen_deploy.bundle.watch import picture_lines, watched

    opened = open_bundle(bundle)
    found = watched(opened, picture_lines(record, opened), picture_lines(before, opened) if before else ())
    if as_json:
        print_json({"watched": [asdict(one) for one in found]})
    else:
        _print_watched(found)
    verdicts = {one.verdict for one in found}
    if "failed" in verdicts:
        raise typer.Exit(1)
    if any(one.verdict == "not_run" for one in found if one.name == "failures"):
        raise typer.Exit(3)


def make_app(
    bundle: Annotated[Path, typer.Argument(help="A bundle that `export` wrote.")],
    name: Annotated[str, typer.Argument(help="Kind of app: web, android, ios, triton.", metavar="NAME")],
    *,
    target: Annotated[
        str | None,
        typer.Option(help="Target whose files the app gets. Default: the bundle's first that it draws with.", metavar="NAME"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write. Default: BUNDLE-app-NAME.", metavar="FOLDER")
    ] = None,
    packages: Packages = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an app that is there.")] = False,
    verbose: Verbose = False,
) -> None:
    """Write an app that draws with a bundle: for the web, a folder that any host of static files serves; for Android, a project
    for Gradle and Android Studio; for iOS, a Swift package; for NVIDIA Triton, a model repository.

    It has what it needs of the bundle, and checks the hashes of all files before it draws. Its README says how to ship it.
    """
    from snapgen_deploy.apps.registry import app_folder, app_of, write_app
    from snapgen_deploy.bundle.reader import check_hashes, open_bundle

    kind, opened = app_of(name), open_bundle(bundle)
    check_hashes(opened)
    folder = output or app_folder(opened.path, name)
    say(f"app: {write_app(kind, opened, folder, packages, target=target, overwrite=overwrite)}")


def _print_watched(found: Sequence[Watched]) -> None:
    table = new_table()
    for name in ("watched", "verdict", "found"):
        table.add_column(name, overflow="fold")
    for name in ("value", "at most"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found:
        numbers = ["" if number is None else f"{number:.4g}" for number in (one.value, one.most)]
        table.add_row(one.name, one.verdict.replace("_", " "), one.detail, *numbers)
    out().print(table)


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
