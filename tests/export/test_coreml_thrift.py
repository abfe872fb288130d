"""coremltools at less cost answers, and writes, as it does by itself."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from snapgen_deploy.export import coreml_thrift
from snapgen_deploy.export.coreml import CoreML
from tests.export.graph_cases import OPTIONS, contents, mixed


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
    assert coreml_thrift.has_overflowing_constant(asked) == FP16ComputePrecision.fp16_overflow(asked)


def test_every_block_is_looked_at_and_only_fp32_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreml_thrift, "BLOCK", 4)
    values = np.zeros((5, 3), np.float32)
    values[4, 2] = 1e6
    assert coreml_thrift.has_overflowing_constant(operation(values))
    assert not coreml_thrift.has_overflowing_constant(operation(values, dtype="int32"))
    assert not coreml_thrift.has_overflowing_constant(operation(values, op_type="linear"))


def test_coremltools_gets_its_own_back() -> None:
    from coremltools.converters.mil.mil import Program
    from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision

    search, validate = FP16ComputePrecision.__dict__["fp16_overflow"], Program.validate
    with pytest.raises(KeyError), coreml_thrift.thrifty():
        assert FP16ComputePrecision.fp16_overflow is coreml_thrift.has_overflowing_constant
        assert Program.validate is not validate
        raise KeyError
    assert FP16ComputePrecision.__dict__["fp16_overflow"] is search
    assert Program.validate is validate


def test_the_package_is_the_same_and_a_program_that_is_not_sound_still_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coremltools.converters.mil.mil import Builder
    from coremltools.converters.mil.mil.passes.defs.cleanup.dead_code_elimination import dead_code_elimination

    target, (with_it, without) = CoreML(), (tmp_path / "with", tmp_path / "without")
    with_it.mkdir(), without.mkdir()
    made = target.export(mixed(), "", "fp16", with_it, OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(coreml_thrift, "thrifty", contextlib.nullcontext)
        plain = target.export(mixed(), "", "fp16", without, OPTIONS)
    assert contents(made.files, made.path) == contents(plain.files, plain.path)

    def break_it(self: object, program: Any) -> None:
        operation = next(op for op in program.functions["main"].operations if op.op_type != "const")
        operation.outputs[0].child_ops.append(operation)

    monkeypatch.setattr(Builder, "name_count", Builder.name_count.copy())  # what fails leaves counts, and other names follow
    monkeypatch.setattr(dead_code_elimination, "apply", break_it)
    with pytest.raises(RuntimeError, match="should be consumed by op"):
        target.export(mixed(), "", "fp16", with_it, OPTIONS)


def test_scikit_learn_is_not_loaded_with_coremltools_and_can_be_afterwards() -> None:
    code = (
        "import sys\n"
        "from snapgen_deploy.export.coreml_thrift import load\n"
        "assert load().converters and 'sklearn' not in sys.modules\n"
        "from sklearn.cluster import KMeans\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
