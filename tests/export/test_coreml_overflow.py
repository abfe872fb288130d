"""The thrifty search for constants beyond fp16 answers as coremltools does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from snapgen_deploy.export import coreml_overflow


def operation(values: np.ndarray, dtype: str = "fp32", op_type: str = "const") -> Any:
    """A MIL operation with a harmless constant, a list, and `values`, as far as the search looks at it."""

    def var(held: np.ndarray) -> Any:
        constant = SimpleNamespace(op_type=op_type, val=SimpleNamespace(val=held))
        return SimpleNamespace(op=constant, is_tensor_or_scalar_of=lambda dtype: dtype == kind)

    kind = dtype
    given = SimpleNamespace(op=None, is_tensor_or_scalar_of=lambda dtype: True)
    return SimpleNamespace(inputs={"x": given, "y": [var(np.ones(3, np.float32)), var(values)]})


@pytest.mark.parametrize(
    "number", [0.0, 65504.0, 65504.01, 65505.0, -65536.0, 1e30, 9.9e37, 1e38, -3e38, np.inf, -np.inf, np.nan]
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 5, 7)])
def test_the_answer_is_coremltools_own(number: float, shape: tuple[int, ...]) -> None:
    from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision

    values = np.full(shape, 0.5, np.float32)
    values.flat[-1] = number
    asked = operation(values)
    assert coreml_overflow.has_overflowing_constant(asked) == FP16ComputePrecision.fp16_overflow(asked)


def test_every_block_is_looked_at_and_only_fp32_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreml_overflow, "BLOCK", 4)
    values = np.zeros((5, 3), np.float32)
    values[4, 2] = 1e6
    assert coreml_overflow.has_overflowing_constant(operation(values))
    assert not coreml_overflow.has_overflowing_constant(operation(values, dtype="int32"))
    assert not coreml_overflow.has_overflowing_constant(operation(values, op_type="linear"))


def test_coremltools_gets_its_own_search_back() -> None:
    from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision

    before = FP16ComputePrecision.__dict__["fp16_overflow"]
    with pytest.raises(KeyError), coreml_overflow.thrifty():
        assert FP16ComputePrecision.fp16_overflow is coreml_overflow.has_overflowing_constant
        raise KeyError
    assert FP16ComputePrecision.__dict__["fp16_overflow"] is before
