"""`snapgen-deploy doctor --layers`: finds the first operation of a saved graph with a wrong output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from snapgen_deploy.cli.console import print_json, progress, say, tell
from snapgen_deploy.errors import BadInput, MeasurementFailed

if TYPE_CHECKING:
    from snapgen_deploy.check.layers import FoundLayers

FILE_LIMIT = 0.05


def check_layers(path: Path, target: str | None, inputs: Path | None, limit: float | None, as_json: bool, changes: str) -> None:
    """Compare and print; exit with 1 if a layer is wrong, with 4 if nothing could be compared."""
    from snapgen_deploy.check.layer_check import compare_layers, of_path

    if inputs is not None and (path / "manifest.json").is_file():
        raise BadInput("--inputs is for a file; a bundle brings its own test vectors")
    shown = progress(quiet=as_json)
    rows = []
    for work in of_path(path, target, inputs):
        held_to = limit if limit is not None else work.limit or FILE_LIMIT
        with shown(f"comparing the layers of {work.name}"):
            found = compare_layers(work, held_to)
        rows.append((work.name, held_to, found))
    if as_json:
        components = {name: _as_dict(held_to, found) for name, held_to, found in rows}
        print_json({"path": str(path), "changes": changes, "components": components})
    else:
        for row in rows:
            _print(*row)
    if any(not isinstance(found, str) and found.wrong is not None for _, _, found in rows):
        raise typer.Exit(1)
    if all(isinstance(found, str) for _, _, found in rows):
        if as_json:  # the object contains the reasons
            raise typer.Exit(MeasurementFailed.exit_code)
        raise MeasurementFailed(f"{path}: no layer could be compared")


def _as_dict(limit: float, found: FoundLayers | str) -> dict[str, Any]:
    return {"verdict": "not_run", "reason": found} if isinstance(found, str) else found.as_dict(limit)


def _print(name: str, limit: float, found: FoundLayers | str) -> None:
    if isinstance(found, str):
        say(f"{name}: not_run ({found})")
        return
    for warning in found.warnings:
        tell(f"warning: {name}: {warning}", "yellow")
    looked = f"{found.looked_at} of {found.layers} layers compared, limit {limit:g}"
    if found.wrong is None:
        say(f"{name}: no wrong layer; largest error {found.worst:.3g} ({looked})")
        return
    error = found.errors[found.wrong.output]
    shown = f"error {error:.3g}" if error == error else "not a number"
    say(f"{name}: first wrong: {found.wrong}, {shown} ({looked})")
    for source in found.wrong.inputs:
        if source in found.errors:
            say(f"  its input {source}: error {found.errors[source]:.3g}")
