"""Which target of a bundle a link's device runs, and which this host times."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapgen_deploy.bundle.reader import Bundle
from snapgen_deploy.errors import BadInput, MeasurementFailed
from snapgen_deploy.latency.measure.device import target_for
from snapgen_deploy.latency.measure.session import runs_here


def bundle(*targets: str) -> Bundle:
    return Bundle(Path("b"), {"target_order": list(targets), "targets": {key: {} for key in targets}})


def test_a_phone_takes_the_delegates_of_its_system() -> None:
    held = bundle("executorch:coreml", "coreml", "executorch:vulkan", "onnx:cpu")
    assert target_for(held, "adb", None) == "executorch:vulkan"
    assert target_for(held, "adb:serial", "onnx") == "onnx:cpu"
    assert target_for(held, "iphone", None) == "coreml"
    with pytest.raises(
        BadInput,
        match="adb runs executorch:xnnpack and executorch:vulkan and onnx:cpu; b holds .*, and executorch:coreml was asked for",
    ):
        target_for(held, "adb", "executorch:coreml")


def test_core_ml_inside_an_executorch_program_is_not_timed_here() -> None:
    with pytest.raises(MeasurementFailed, match=r"executorch:coreml: this host runs the Core ML packages inside"):
        runs_here("executorch:coreml")
