"""Runs a finished bundle's gates again, from its own files and test vectors.

The checkpoint is not needed; hence the fidelity gate, which compares with many pictures of the fp32 reference, is `not_run`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from snapgen_deploy.bundle import Bundle
from snapgen_deploy.bundle_facts import refuse_contradictions, refuse_other_limits, refuse_unsound_gates
from snapgen_deploy.child import run_in_child
from snapgen_deploy.errors import BadInput
from snapgen_deploy.gates import Gate, check_sizes
from snapgen_deploy.progress import Progress
from snapgen_deploy.reference import ReferenceVectors

FIDELITY = "fidelity_"  # how the names of its gates begin
NEEDED = {"noise", "latent", "student.latents", "student.velocities"}  # arrays that test vectors of any checkpoint hold


def rerun_gates(bundle: Bundle, threads: int, progress: Progress) -> tuple[Gate, ...]:
    """All gates of all targets, each target in a fresh process; GateFailed where the manifest is not of these files."""
    views = {size: bundle.at(size) for size in bundle.sizes}
    vectors = {size: read_vectors(view) for size, view in views.items()}
    refuse_unsound_gates(bundle)
    for size, view in views.items():
        refuse_contradictions(view, vectors[size])
    gates: list[Gate] = []
    for key in bundle.targets:
        artifacts = {size: view.artifacts(key) for size, view in views.items()}
        with progress(f"{key}: running the bundle's files") as tell:
            arguments = (
                key,
                bundle.precision(key),
                bundle.limits(key),
                artifacts,
                bundle.config,
                bundle.schedule,
                vectors,
                threads,
            )
            checked, _ = run_in_child(f"{key} check", check_sizes, *arguments, tell=tell)
            gates += [gate for one in checked.values() for gate in one.gates]
    refuse_other_limits(bundle, gates)
    left = (g for g in bundle.manifest["gates"] if g["name"].startswith(FIDELITY))
    return (*gates, *(replace(Gate(**g), value=None, verdict="not_run", detail=_left(g)) for g in left))


def _left(gate: Mapping[str, Any]) -> str:
    """Why a gate of the export is not run again, and what came of it then."""
    then = gate["verdict"] if gate["value"] is None else f"{gate['verdict']} with {gate['value']:g}"
    return f"it compares with pictures of the checkpoint, which a bundle has not; the export: {then}"


def read_vectors(bundle: Bundle) -> ReferenceVectors:
    """The test vectors that the bundle ships."""
    from safetensors import SafetensorError, safe_open

    path = bundle.test_vectors
    try:
        with safe_open(path, framework="np") as file:
            prompts = json.loads(file.metadata()["prompts"])
            names = list(file.keys())
            arrays = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} cannot be read ({error}); export the bundle again") from None
    if not prompts or any(len(array) != len(prompts) for array in arrays.values()) or not set(arrays) >= NEEDED:
        raise BadInput(f"{path} has not a row in every array for each of its {len(prompts)} prompts; export the bundle again")
    return ReferenceVectors(tuple(prompts), tuple(bundle.manifest["seeds"])[: len(prompts)], arrays)
