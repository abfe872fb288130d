"""Runs a finished bundle's gates again, from its own files and test vectors; the checkpoint is not needed."""

from __future__ import annotations

import json

from snapgen_deploy.bundle import Bundle
from snapgen_deploy.child import run_in_child
from snapgen_deploy.errors import BadInput
from snapgen_deploy.gates import Gate, check_sizes
from snapgen_deploy.progress import Progress
from snapgen_deploy.reference import ReferenceVectors


def rerun_gates(bundle: Bundle, threads: int, progress: Progress) -> tuple[Gate, ...]:
    """All gates of all targets, each target in a fresh process."""
    views = {size: bundle.at(size) for size in bundle.sizes}
    vectors = {size: read_vectors(view) for size, view in views.items()}
    gates: list[Gate] = []
    for key in bundle.targets:
        artifacts = {size: view.artifacts(key) for size, view in views.items()}
        with progress(f"{key}: running the bundle's files"):
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
            checked, _ = run_in_child(f"{key} check", check_sizes, *arguments)
            gates += [gate for one in checked.values() for gate in one.gates]
    return tuple(gates)


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
    return ReferenceVectors(tuple(prompts), tuple(bundle.manifest["seeds"])[: len(prompts)], arrays)
