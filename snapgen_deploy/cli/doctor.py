"""`snapgen-deploy doctor`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snapgen_deploy.cli.console import new_table, out, print_json, progress, tell
from snapgen_deploy.cli.doctor_layers import check_layers
from snapgen_deploy.cli.options import AsJson
from snapgen_deploy.errors import BadInput, GateFailed
from snapgen_deploy.system.documents import several

if TYPE_CHECKING:
    from snapgen_deploy.export.lint import Finding, Placement
    from snapgen_deploy.export.probe import HoldsPackages

_STYLES = {"error": "red", "warning": "yellow", "info": "cyan"}


def doctor(
    bundle_or_package: Annotated[
        Path,
        typer.Argument(
            help="A bundle that `export` wrote, an .mlpackage, an .aimodel, or a .pte with a Core ML delegate. "
            "With --layers also an .onnx."
        ),
    ],
    *,
    layers: Annotated[
        bool, typer.Option("--layers", help="Run every component instead, and name the first operation whose output is wrong.")
    ] = False,
    target: Annotated[str | None, typer.Option(help="With --layers: NAME:VARIANT. Default: all targets.")] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(help="With --layers and a file: .npz of inputs. Default: noise. A quantised file needs real inputs."),
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(
            min=0, help="With --layers: largest relative error of a correct output. Default: the gate's limit, 0.05 for a file."
        ),
    ] = None,
    memory_limit: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="MB that the app may use. Default: the budget of the bundle's device.")
    ] = None,
    as_json: AsJson = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Reasons, sources, all examples; tracebacks; libraries' output.")
    ] = False,
) -> None:
    """Find what keeps Core ML packages off the Neural Engine, why, and how to fix it; or which layer is wrong (--layers)."""
    if layers and memory_limit is not None:
        raise BadInput("--memory-limit belongs to doctor without --layers; leave one of them out")
    if not layers and (target is not None or inputs is not None or limit is not None):
        raise BadInput("--target, --inputs and --limit belong to --layers; add it, or leave them out")
    changes = _changes(bundle_or_package)
    if changes:
        tell(f"warning: {changes}; the results below are for the files as they are now", "yellow")
    if layers:
        check_layers(bundle_or_package, target, inputs, limit, as_json, changes)
        return
    from snapgen_deploy.export.lint import Placement, lint_package, read_placement

    work = progress(quiet=as_json)
    reports: dict[str, tuple[tuple[Finding, ...], Placement]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if (absent := _absent(bundle_or_package)) is not None:
            reports[bundle_or_package.name] = (absent,), Placement("not_run", "an asset is missing")
        reports |= _linted(bundle_or_package)
        packages, limit = _packages(bundle_or_package, Path(scratch), bool(reports))
        if memory_limit is not None:
            limit = int(memory_limit * 1e6)
        for name, path in packages.items():
            with work(f"reading {name}"):
                reports[name] = lint_package(path, memory_limit=limit), read_placement(path)
    failed = any(f.severity == "error" for findings, _ in reports.values() for f in findings)
    if as_json:
        print_json({"path": str(bundle_or_package), "changes": changes, "memory_limit": limit, "components": _as_data(reports)})
    else:
        for name, (findings, placement) in reports.items():
            _print(name, findings, placement, verbose)
    if failed:
        raise typer.Exit(1)


def _changes(path: Path) -> str:
    """How a bundle differs from what was exported; empty if it does not, or for a file."""
    from snapgen_deploy.bundle.reader import MANIFEST, check_hashes, open_bundle

    if not (path / MANIFEST).is_file():
        return ""
    try:
        check_hashes(open_bundle(path))
    except GateFailed as error:
        return str(error)
    return ""


def _absent(path: Path) -> Finding | None:
    """The components of a bundle that a loader will not find; None for a file, and where they are all there."""
    from snapgen_deploy.bundle.reader import MANIFEST, open_bundle
    from snapgen_deploy.export.lint import missing_assets

    if not (path / MANIFEST).is_file():
        return None
    bundle = open_bundle(path)
    return missing_assets((a.path for key in bundle.targets for a in bundle.artifacts(key).values()), path)


def _linted(path: Path) -> dict[str, tuple[tuple[Finding, ...], Placement]]:
    """Name -> report for what the lint looks at that is no Core ML package: Core AI's assets, where their reader is here."""
    from snapgen_deploy.bundle.reader import MANIFEST, open_bundle
    from snapgen_deploy.export.lint import Linted, Placement
    from snapgen_deploy.export.probe import owner_of
    from snapgen_deploy.export.registry import target_of

    files: dict[str, tuple[str, Path]] = {}
    if (path / MANIFEST).is_file():
        bundle = open_bundle(path)
        for key in bundle.targets:
            files |= {f"{role} ({key})": (key, a.path) for role, a in bundle.artifacts(key).items() if a.path.exists()}
    elif path.exists() and (owner := owner_of(path)) is not None:
        files[path.name] = owner, path
    nowhere = Placement("not_run", "the device places it when it loads the file")
    found = {}
    for name, (key, file) in files.items():
        target, variant = target_of(key)
        if isinstance(target, Linted) and target.unavailable(variant) is None:
            found[name] = tuple(target.findings(file)), nowhere
    return found


def _packages(path: Path, scratch: Path, others: bool) -> tuple[dict[str, Path], int | None]:
    """The Core ML packages to check, by name, and the device's memory limit in bytes if it is known.

    Packages inside ExecuTorch programs are extracted to `scratch`.

    Raises:
        BadInput: if the path does not exist, or holds no Core ML package although there are no `others` to check.
    """
    from snapgen_deploy.bundle.reader import open_bundle
    from snapgen_deploy.export.probe import HoldsPackages, holder_of, owner_of
    from snapgen_deploy.export.registry import target_of

    if not path.exists():
        raise BadInput(f"{path} does not exist; give a bundle directory, a .mlpackage or a .pte")
    if owner_of(path) is not None:
        if (holder := holder_of(path)) is None and others:
            return {}, None
        if holder is None:
            raise BadInput(f"{path} has nothing for the Neural Engine; add --layers to check its layers")
        return _inside(holder, path, path.name, scratch), None
    bundle = open_bundle(path)
    packages: dict[str, Path] = {}
    for key in bundle.targets:
        target, _ = target_of(key)
        if isinstance(target, HoldsPackages):
            for role, artifact in bundle.artifacts(key).items():
                if artifact.path.exists() or not others:
                    packages |= _inside(target, artifact.path, f"{role} ({key})", scratch)
    if not packages and not others:
        raise BadInput(f"{path} holds no Core ML package: its targets are {several(bundle.targets)}")
    budget = bundle.manifest.get("device", {}).get("memory_budget")
    return packages, budget if isinstance(budget, int) else None


def _inside(target: HoldsPackages, path: Path, name: str, scratch: Path) -> dict[str, Path]:
    """The Core ML packages of a saved file; if there are several, their names are numbered.

    Raises:
        BadInput: if there is none.
    """
    folder = scratch / str(len(list(scratch.iterdir())))
    folder.mkdir()
    found = target.packages(path, folder)
    if not found:
        raise BadInput(f"{path} holds no Core ML package: no part of it is for the Core ML delegate")
    return {name if number == 0 else f"{name} {number}": package for number, package in enumerate(found)}


def _as_data(reports: dict[str, tuple[tuple[Finding, ...], Placement]]) -> dict[str, Any]:
    from snapgen_deploy.export.lint import counts

    return {
        name: {
            "counts": counts(findings),
            "findings": [f.as_dict() for f in findings],
            "placement": placement.as_dict(),
        }
        for name, (findings, placement) in reports.items()
    }


def _print(name: str, findings: tuple[Finding, ...], placement: Placement, verbose: bool) -> None:
    from rich.text import Text

    console = out()
    if findings:
        table = new_table(name, title_style="bold")
        for column in ("severity", "rule", "count", "example"):
            table.add_column(column, justify="right" if column == "count" else "left")
        for f in findings:
            shown = f.examples if verbose else f.examples[:1]
            example = Text("\n".join(str(e) for e in shown))
            severity, rule = Text(f.severity, style=_STYLES[f.severity]), Text(f.rule, no_wrap=True)
            table.add_row(severity, rule, str(f.count), example)
        console.print(table)
        for f in findings:
            console.print(Text.assemble((f"{f.rule}: ", "bold"), f.message, ("; fix: ", "dim"), f.fix))
            if verbose:
                console.print(Text("\n".join((f"  {f.reason}", *(f"  {source}" for source in f.sources))), style="dim"))
    else:
        console.print(Text.assemble((name, "bold"), ": nothing to fix"))
    console.print(Text.assemble("placement: ", _placement_line(placement)))
    if verbose:
        for o in placement.operations:
            console.print(Text(f"  {o.preferred:14} {o.op} {o.output}"))


def _placement_line(placement: Placement) -> str:
    if placement.status == "not_run":
        return f"not_run ({placement.reason})"
    share = placement.neural_engine_share
    work = "" if share is None else f"; {share:.1%} of the estimated work on the Neural Engine"
    return ", ".join(f"{n} on {device}" for device, n in placement.devices.items()) + work
