"""Builds small MIL programs with coremltools' Builder, saves them, and holds what each operation must give."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

logging.getLogger("coremltools").setLevel(logging.ERROR)  # it warns about every library of another platform

import coremltools as ct  # noqa: E402
from coremltools.converters.mil.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import Function, Program, types  # noqa: E402

TARGETS = {15: ct.target.iOS15, 16: ct.target.iOS16, 17: ct.target.iOS17, 18: ct.target.iOS18}
_TYPES = {"float32": types.fp32, "int32": types.int32, "float16": types.fp16}
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One operation with inputs, built by `build(**vars)`; `expect(**arrays)` is what an independent oracle says."""

    name: str
    inputs: Arrays
    build: Callable[..., Any]
    expect: Callable[..., Any]
    ios: int = 15
    tolerance: float = 2e-5
    extra: dict[str, Any] = field(default_factory=dict)


def t(x: np.ndarray) -> torch.Tensor:
    """The same array for an oracle of torch's."""
    return torch.from_numpy(np.ascontiguousarray(x))


def plain(var: Any) -> Any:
    """`var` as something that a model may give: other types than real numbers and int32 are cast."""
    if var.dtype == types.bool or var.dtype in (types.int8, types.uint8, types.int16, types.uint16):
        var = mb.cast(x=var, dtype="int32")
    return mb.identity(x=var)


def save(program: Any, path: Path, ios: int, *, fp16: bool = False, **options: Any) -> Path:
    """The program as it is (no graph passes unless asked for), converted and saved."""
    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=TARGETS[ios],
        compute_precision=ct.precision.FLOAT16 if fp16 else ct.precision.FLOAT32,
        pass_pipeline=options.pop("pass_pipeline", ct.PassPipeline.EMPTY),
        skip_model_load=True,
        **options,
    )
    model.save(str(path))
    return path


def one_program(cases: list[Case], path: Path, ios: int) -> tuple[Path, Arrays, dict[str, list[str]]]:
    """All cases of one target in one package: its path, all inputs, and each case's output names."""
    inputs: Arrays = {}
    for case in cases:
        inputs.update({f"{case.name}__{k}": v for k, v in case.inputs.items()})
    names: dict[str, list[str]] = {}

    specs = {name: mb.TensorSpec(shape=v.shape, dtype=_TYPES[str(v.dtype)]) for name, v in inputs.items()}
    with Function(specs, opset_version=TARGETS[ios]) as function:
        outputs = []
        for case in cases:
            made = case.build(**{k: function.inputs[f"{case.name}__{k}"] for k in case.inputs})
            names[case.name] = []
            for i, var in enumerate(made if isinstance(made, (tuple, list)) else (made,)):
                out = plain(var)
                out.name = f"{case.name}__out{i}"
                names[case.name].append(out.name)
                outputs.append(out)
        function.set_outputs(outputs)
    program = Program()
    program.add_function("main", function)
    return save(program, path, ios), inputs, names


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference relative to the largest wanted magnitude (at least 1)."""
    if wanted.size == 0:
        return 0.0
    difference = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
    return float(difference.max() / max(1.0, float(np.abs(wanted).max())))
