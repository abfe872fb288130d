"""Golden vectors that are made at import: a component that is a class of a library is held to the library's own forward pass.

What a team's file has of such a component is kept instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from snapgen_deploy.checkpoint import Checkpoint, CheckpointPlace
from snapgen_deploy.checkpoint.header import DTYPE_BYTES, TensorInfo, read_header
from snapgen_deploy.checkpoint.writer import write_tensors
from snapgen_deploy.export.base import Role
from snapgen_deploy.families.component import WHOLE, Drawing, OracleTask
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.golden.vectors import HELD_TO, GoldenVectors
from snapgen_deploy.models.config import ModelConfig
from snapgen_deploy.system.source import version_of

_CODES = {torch.float32: "F32", torch.int32: "I32", torch.int64: "I64"}


@dataclass(frozen=True)
class OwnVectorsTask:
    """Components that libraries compute, for a process of its own."""

    checkpoint: CheckpointPlace
    drawing: Drawing
    roles: tuple[Role, ...]
    given: Path | None  # the team's own vectors, which are taken over
    path: Path  # of the file that is written
    threads: int


def held_to_libraries(config: ModelConfig, given: GoldenVectors | None) -> dict[Role, str]:
    """Library and version, such as `diffusers 0.39.0`, of each component that is a library's and not in the team's vectors."""
    held = () if given is None else given.cases
    oracles = {spec.name: spec.oracle for spec in components_of(config) if spec.name not in held}
    return {role: f"{o.library} {version_of(o.library)}" for role, o in oracles.items() if o is not None}


def write_own_vectors(task: OwnVectorsTask) -> None:
    """In a child process: run each library's own network, and write the golden vectors.

    Raises:
        BadInput: if a library cannot load its component.
    """
    torch.set_num_threads(task.threads)
    checkpoint = task.checkpoint.open()
    arrays, metadata = _given(task.given)
    for role in task.roles:
        for port, rows in _recorded(checkpoint, role, task.drawing).items():
            arrays[port if port.startswith(f"{WHOLE}.") else f"{role}.{port}"] = rows.contiguous()
    libraries = {r: said for r, said in held_to_libraries(checkpoint.config, None).items() if r in task.roles}
    metadata |= {HELD_TO: json.dumps(libraries, sort_keys=True)}
    infos = {
        name: TensorInfo(tuple(t.shape), (code := _CODES[t.dtype]), t.numel() * DTYPE_BYTES[code])
        for name, t in sorted(arrays.items())
    }
    write_tensors(task.path, infos, arrays.__getitem__, metadata)


def _recorded(checkpoint: Checkpoint, role: Role, drawing: Drawing) -> Mapping[str, Tensor]:
    oracle = components_of(checkpoint.config)[role].oracle
    assert oracle is not None
    adapted = frozenset(name.removeprefix(f"{role}.") for name in checkpoint.adapted if name.startswith(f"{role}."))
    read = partial(_read, checkpoint, role)
    return oracle.record(OracleTask(checkpoint.folders.get(role), read, drawing, adapted))


def _read(checkpoint: Checkpoint, role: Role, name: str) -> Tensor:
    return checkpoint.read(f"{role}.{name}")


def _given(path: Path | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Arrays and metadata of the team's file; numbers with a fraction as float32, which all of them fit."""
    from safetensors import safe_open

    if path is None:
        return {}, {}
    header = read_header(path)
    with safe_open(path, framework="pt") as file:
        arrays = {name: file.get_tensor(name) for name in header.tensors}
    kinds = {name: torch.float32 if tensor.is_floating_point() else torch.int64 for name, tensor in arrays.items()}
    return {name: tensor.to(kinds[name]) for name, tensor in arrays.items()}, dict(header.metadata)
