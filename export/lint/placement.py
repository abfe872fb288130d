"""Where Core ML would run each operation, from macOS's compute plan; on other systems `not_run`, with the reason."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_DEVICES = {"MLCPUComputeDevice": "CPU", "MLGPUComputeDevice": "GPU", "MLNeuralEngineComputeDevice": "Neural Engine"}
"""Class of coremltools.models.compute_device -> name."""
_UNKNOWN = "unknown"
NEURAL_ENGINE = "Neural Engine"


@dataclass(frozen=True)
class OpPlacement:
    """One operation: where it would run, where it could run, and its share (0...1) of the estimated work."""

    op: str
    output: str
    preferred: str
    supported: tuple[str, ...]
    cost: float | None


@dataclass(frozen=True)
class Placement:
    """`status` is "read" or "not_run"; `reason` says why a plan could not be read."""

    status: Literal["read", "not_run"]
    reason: str = ""
    operations: tuple[OpPlacement, ...] = ()

    @property
    def devices(self) -> dict[str, int]:
        """Device -> number of operations."""
        return dict(sorted(Counter(o.preferred for o in self.operations).items()))

    @property
    def neural_engine_share(self) -> float | None:
        """Share of the estimated work on the Neural Engine; None without a plan or without estimates."""
        known = [o for o in self.operations if o.cost is not None]
        total = sum(o.cost or 0.0 for o in known)
        return sum(o.cost or 0.0 for o in known if o.preferred == NEURAL_ENGINE) / total if total > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """The placement as JSON data: counts, and the operations that would leave the Neural Engine."""
        if self.status == "not_run":
            return {"status": self.status, "reason": self.reason}
        away = [o for o in self.operations if o.preferred != NEURAL_ENGINE]
        return {
            "status": self.status,
            "devices": self.devices,
            "neural_engine_share": self.neural_engine_share,
            "elsewhere": [
                {"op": o.op, "output": o.output, "preferred": o.preferred, "supported": list(o.supported), "cost": o.cost}
                for o in away
            ],
        }


def read_placement(package: Path, *, platform: str = sys.platform, load: Callable[[Path], Any] | None = None) -> Placement:
    """Core ML's plan for a saved package with CPU and Neural Engine allowed.

    `load` makes the plan object (coremltools' MLComputePlan by default). A plan that cannot be made is `not_run` with the
    reason: a lint never fails because of it.
    """
    if platform != "darwin":
        return Placement("not_run", f"Core ML makes compute plans on macOS only; this is {platform}")
    try:
        return placement_of((load or _load_plan)(package))
    except Exception as error:  # whatever the system framework raises: the reason is shown, nothing is hidden
        return Placement("not_run", f"Core ML made no plan: {type(error).__name__}: {' '.join(str(error).split())}")


def placement_of(plan: Any) -> Placement:
    """Read a compute plan (an MLComputePlan) of an ML Program: every operation but constants, nested blocks included."""
    program = plan.model_structure.program
    if program is None:
        return Placement("not_run", "Core ML made no plan: the model is no ML Program")
    operations = tuple(_operation(plan, op) for function in program.functions.values() for op in _operations(function.block))
    return Placement("read", operations=operations)


def _operations(block: Any) -> Iterator[Any]:
    for op in block.operations:
        if _name(op) != "const" and not _name(op).startswith("constexpr_"):
            yield op
        for nested in op.blocks:
            yield from _operations(nested)


def _name(op: Any) -> str:
    """The operation without the generation that Core ML puts before it (`ios18.conv`)."""
    return str(op.operator_name).rsplit(".", 1)[-1]


def _operation(plan: Any, op: Any) -> OpPlacement:
    usage = plan.get_compute_device_usage_for_mlprogram_operation(op)
    cost = plan.get_estimated_cost_for_mlprogram_operation(op)
    return OpPlacement(
        _name(op),
        op.outputs[0].name if op.outputs else "",
        _UNKNOWN if usage is None else _device(usage.preferred_compute_device),
        () if usage is None else tuple(_device(d) for d in usage.supported_compute_devices),
        None if cost is None else float(cost.weight),
    )


def _device(device: Any) -> str:
    return _DEVICES.get(type(device).__name__, type(device).__name__)


def _load_plan(package: Path) -> Any:
    import tempfile

    import coremltools as ct
    from coremltools.models.compute_plan import MLComputePlan
    from coremltools.models.utils import compile_model

    with tempfile.TemporaryDirectory(suffix=".mlmodelc") as directory:
        compiled = compile_model(str(package), str(Path(directory) / "model.mlmodelc"))
        return MLComputePlan.load_from_path(path=compiled, compute_units=ct.ComputeUnit.CPU_AND_NE)
