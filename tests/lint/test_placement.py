from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapgen_deploy.export.lint.placement import Placement, placement_of, read_placement
from tests.lint.lint_cases import clean


def _device(kind: str) -> Any:
    """One of coremltools' own device classes, without the proxy that only macOS has."""
    from coremltools.models import compute_device

    return object.__new__(getattr(compute_device, kind))


def _op(name: str, output: str, *blocks: Any) -> Any:
    from coremltools.models.compute_plan import MLModelStructureProgramNamedValueType as Value
    from coremltools.models.compute_plan import MLModelStructureProgramOperation as Operation

    return Operation({}, name, [Value(output, None)], list(blocks), None)


class FakePlan:
    """What MLComputePlan offers, with coremltools' own dataclasses and a plan from a table."""

    def __init__(self, placed: dict[str, tuple[str, float | None] | None], operations: list[Any]) -> None:
        from coremltools.models import compute_plan as c

        block = c.MLModelStructureProgramBlock([], operations, [])
        function = c.MLModelStructureProgramFunction([], block)
        self.model_structure = c.MLModelStructure(None, c.MLModelStructureProgram({"main": function}), None)
        self._placed = placed

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
        from coremltools.models.compute_plan import MLComputePlanDeviceUsage

        placed = self._placed[operation.outputs[0].name]
        if placed is None:
            return None
        cpu = _device("MLCPUComputeDevice")
        return MLComputePlanDeviceUsage(_device(placed[0]), [_device(placed[0]), cpu])

    def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
        from coremltools.models.compute_plan import MLComputePlanCost

        placed = self._placed[operation.outputs[0].name]
        return None if placed is None or placed[1] is None else MLComputePlanCost(placed[1])


@pytest.fixture
def plan() -> FakePlan:
    from coremltools.models.compute_plan import MLModelStructureProgramBlock as Block

    inner = Block([], [_op("ios18.gather", "g")], [])
    placed = {
        "c": ("MLNeuralEngineComputeDevice", 0.75),
        "w": ("MLCPUComputeDevice", 0.05),
        "g": ("MLCPUComputeDevice", 0.2),
        "y": None,
    }
    operations = [_op("const", "k"), _op("ios18.constexpr_lut_to_dense", "l"), _op("ios18.conv", "c")]
    return FakePlan(placed, [*operations, _op("while_loop", "w", inner), _op("ios18.relu", "y")])


def test_a_plan_is_read_operation_by_operation(plan: FakePlan) -> None:
    placement = placement_of(plan)
    assert placement.status == "read"
    assert [(o.op, o.output, o.preferred) for o in placement.operations] == [
        ("conv", "c", "Neural Engine"),
        ("while_loop", "w", "CPU"),
        ("gather", "g", "CPU"),
        ("relu", "y", "unknown"),
    ]
    assert placement.operations[0].supported == ("Neural Engine", "CPU")
    assert placement.devices == {"CPU": 2, "Neural Engine": 1, "unknown": 1}
    assert placement.neural_engine_share == pytest.approx(0.75)
    data = placement.as_dict()
    assert [o["output"] for o in data["elsewhere"]] == ["w", "g", "y"]


def test_macos_reads_a_plan_and_others_say_why_not(plan: FakePlan, tmp_path: Path) -> None:
    seen = []

    def load(path: Path) -> Any:
        seen.append(path)
        return plan

    package = tmp_path / "p.mlpackage"
    assert read_placement(package, platform="darwin", load=load).status == "read"
    assert seen == [package]
    elsewhere = read_placement(package, platform="linux", load=load)
    assert elsewhere == Placement("not_run", "Core ML makes compute plans on macOS only; this is linux")
    assert elsewhere.as_dict() == {"status": "not_run", "reason": elsewhere.reason}
    assert elsewhere.neural_engine_share is None
    assert seen == [package]


def test_a_plan_that_cannot_be_made_is_not_run(tmp_path: Path) -> None:
    import sys

    if sys.platform == "darwin":
        pytest.skip("here the real framework would make the plan")
    # The real loader, on a system without Core ML: it fails, and the reason is told.
    placement = read_placement(clean(tmp_path / "c.mlpackage"), platform="darwin")
    assert placement.status == "not_run"
    assert placement.reason.startswith("Core ML made no plan: ")


def test_a_model_without_a_program_has_no_plan(plan: FakePlan) -> None:
    plan.model_structure = SimpleNamespace(program=None)
    assert placement_of(plan).status == "not_run"
