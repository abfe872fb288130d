"""Runs a finished bundle's gates again, from its own files and test vectors: on this machine, or on others.

The checkpoint is not needed. Therefore gates that compare its own networks are `not_run`: the fidelity gates, which draw many
pictures with the fp32 reference, and those of the reference on golden vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from snapgen_deploy.bundle.reader import GOLDEN, Bundle
from snapgen_deploy.bundle.vectors import read_vectors
from snapgen_deploy.check.facts import (
    refuse_contradictions,
    refuse_other_cases,
    refuse_other_limits,
    refuse_other_values,
    refuse_unsound_gates,
)
from snapgen_deploy.check.gates import OF_GOLDEN, Gate, SavedTarget, check_sizes
from snapgen_deploy.check.golden import OF_REFERENCE
from snapgen_deploy.check.memory import check_bytes
from snapgen_deploy.export.registry import spec_of
from snapgen_deploy.golden.vectors import GoldenVectors, open_golden
from snapgen_deploy.plan.widths import activation_bytes
from snapgen_deploy.system.child import run_in_child
from snapgen_deploy.system.files import is_file
from snapgen_deploy.system.progress import Progress
from snapgen_deploy.system.side_by_side import room_for, run_all

_FIDELITY = "fidelity_"  # how the names of its gates begin


def rerun_gates(
    bundle: Bundle, threads: int, progress: Progress, golden: Path | None = None, on: Sequence[str] = ()
) -> tuple[Gate, ...]:
    """Run all gates of all targets, each target in a fresh process, side by side as far as threads and memory allow.

    Golden vectors are those in `golden`, else the bundle's own. With `on`, names of machines, these run the files in place of
    this one.

    Raises:
        GateFailed: if the manifest contradicts the bundle's files, records a failed gate or other limits, or conformance.json
            has other cases.
        BadInput: if the test vectors or the golden vectors cannot be read.
    """
    views = {size: bundle.at(size) for size in bundle.sizes}
    vectors = {size: read_vectors(view) for size, view in views.items()}
    refuse_unsound_gates(bundle)
    for size, view in views.items():
        refuse_contradictions(view, vectors[size])
    held = _golden(bundle, golden)
    needed = _predicted(bundle, views)
    room = room_for(list(needed.values()), threads)
    each = max(1, threads // len(needed)) if room.holds(needed.values()) else threads  # beside each other they share them

    def check(key: str) -> list[Gate]:
        saved = {
            size: SavedTarget(
                key=key,
                precision=bundle.precision(key),
                limits=bundle.limits(key),
                artifacts=view.artifacts(key),
                config=bundle.config,
                schedule=bundle.schedule,
                threads=each,
                batch=bundle.batch,
                golden=held if size == bundle.sizes[0] else None,
            )
            for size, view in views.items()
        }
        gates: list[Gate] = []
        for machine in on or ("", *spec_of(key).also_on):
            there = {size: replace(files, on=machine) for size, files in saved.items()}
            what = f"{key} on {machine}" if machine else key
            with room.taken(what, needed[key]), progress(f"{what}: running the bundle's files") as on_progress:
                checked, _ = run_in_child(f"{what} check", check_sizes, there, vectors, on_progress=on_progress)
                gates += [gate for one in checked.values() for gate in one.gates]
        return gates

    gates = [gate for found in run_all(room, [partial(check, key) for key in bundle.targets]) for gate in found]
    own = [g for g in gates if golden is None or g.name not in OF_GOLDEN]
    refuse_other_limits(bundle, own)
    refuse_other_values(bundle, own)
    default = bundle.sizes[0]
    refuse_other_cases(views[default], vectors[default])
    needing = (g for g in bundle.manifest["gates"] if g["name"].startswith(_FIDELITY) or g["target"] == OF_REFERENCE)
    left = [(g, "it needs the checkpoint, which a bundle does not contain") for g in needing]
    ran = {gate.on for gate in gates}
    elsewhere = (g for g in bundle.manifest["gates"] if g.get("on", "") not in ("", *ran))
    left += [(g, f"it needs another machine, --on {g['on']}") for g in elsewhere]
    return (*gates, *(replace(Gate(**g), value=None, verdict="not_run", detail=f"{why}; {_then(g)}") for g, why in left))


def _predicted(bundle: Bundle, views: Mapping[str, Bundle]) -> dict[str, int]:
    """Peak bytes of each target's check."""
    shapes = [(view.latent, view.resolution) for view in views.values()]
    most = max(activation_bytes(bundle.config, bundle.width, *shape, bundle.batch) for shape in shapes)
    return {key: check_bytes(bundle.config, bundle.width, spec_of(key), bundle.precision(key), most) for key in bundle.targets}


def _golden(bundle: Bundle, given: Path | None) -> GoldenVectors | None:
    path = given or bundle.path / GOLDEN
    if given is None and not is_file(path):
        return None
    return open_golden(path, bundle.config, bundle.at(None), bundle.tokenizers())


def _then(gate: Mapping[str, Any]) -> str:
    """The result of a gate at export."""
    then = gate["verdict"] if gate["value"] is None else f"{gate['verdict']} with {gate['value']:g}"
    return f"at export: {then}"
