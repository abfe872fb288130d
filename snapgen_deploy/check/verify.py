"""Runs a finished bundle's gates again, from its own files and test vectors.

The checkpoint is not needed. Therefore the fidelity gates, which compare with pictures of the fp32 reference, are `not_run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from snapgen_deploy.bundle.reader import Bundle
from snapgen_deploy.bundle.vectors import read_vectors
from snapgen_deploy.check.facts import refuse_contradictions, refuse_other_limits, refuse_other_values, refuse_unsound_gates
from snapgen_deploy.check.gates import Gate, SavedTarget, check_sizes
from snapgen_deploy.system.child import run_in_child
from snapgen_deploy.system.progress import Progress

_FIDELITY = "fidelity_"  # how the names of its gates begin


def rerun_gates(bundle: Bundle, threads: int, progress: Progress) -> tuple[Gate, ...]:
    """Run all gates of all targets, each target in a fresh process.

    Raises:
        GateFailed: if the manifest contradicts the bundle's files, records a failed gate, or records other limits.
        BadInput: if the test vectors cannot be read.
    """
    views = {size: bundle.at(size) for size in bundle.sizes}
    vectors = {size: read_vectors(view) for size, view in views.items()}
    refuse_unsound_gates(bundle)
    for size, view in views.items():
        refuse_contradictions(view, vectors[size])
    gates: list[Gate] = []
    for key in bundle.targets:
        saved = {
            size: SavedTarget(
                key=key,
                precision=bundle.precision(key),
                limits=bundle.limits(key),
                artifacts=view.artifacts(key),
                config=bundle.config,
                schedule=bundle.schedule,
                threads=threads,
            )
            for size, view in views.items()
        }
        with progress(f"{key}: running the bundle's files") as on_progress:
            checked, _ = run_in_child(f"{key} check", check_sizes, saved, vectors, on_progress=on_progress)
            gates += [gate for one in checked.values() for gate in one.gates]
    refuse_other_limits(bundle, gates)
    refuse_other_values(bundle, gates)
    left = (g for g in bundle.manifest["gates"] if g["name"].startswith(_FIDELITY))
    return (*gates, *(replace(Gate(**g), value=None, verdict="not_run", detail=_left(g)) for g in left))


def _left(gate: Mapping[str, Any]) -> str:
    """Why a gate of the export is not run again, and its result at export."""
    then = gate["verdict"] if gate["value"] is None else f"{gate['verdict']} with {gate['value']:g}"
    return f"it compares with pictures of the checkpoint, which a bundle does not contain; at export: {then}"
