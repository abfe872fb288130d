"""coremltools at less cost answers, and writes, as it does by itself."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from snapgen_deploy.export.base import Component
from snapgen_deploy.export.coreml.target import CoreML
from snapgen_deploy.export.shared import coremltools as coreml_thrift
from snapgen_deploy.system.child import run_in_child
from tests.export.graph_cases import OPTIONS, component, contents, mixed


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
    monkeypatch.setattr(coreml_thrift, "CHUNK_ELEMENTS", 4)
    values = np.zeros((5, 3), np.float32)
    values[4, 2] = 1e6
    assert coreml_thrift.has_overflowing_constant(operation(values))
    assert not coreml_thrift.has_overflowing_constant(operation(values, dtype="int32"))
    assert not coreml_thrift.has_overflowing_constant(operation(values, op_type="linear"))


def test_coremltools_gets_its_own_back() -> None:
    from coremltools.converters.mil.mil import Program
    from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision

    before = dict(FP16ComputePrecision.__dict__), dict(Program.__dict__)
    with pytest.raises(KeyError), coreml_thrift.thrifty():
        assert FP16ComputePrecision.fp16_overflow is coreml_thrift.has_overflowing_constant
        assert Program.validate is not before[1]["validate"]
        raise KeyError
    assert (dict(FP16ComputePrecision.__dict__), dict(Program.__dict__)) == before


class Shared(nn.Module):
    """Weights as networks have them: of one layer, of two, a layer's that is a result as well, a number."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        for name in ("one", "two", "shown"):
            setattr(self, name, nn.Parameter(torch.randn(16, 16, generator=generator)))

    def forward(self, latent: Tensor, bias: Tensor) -> Tensor:
        x = functional.linear(latent, self.one).relu()
        y = functional.linear(functional.linear(x, self.two) * 0.3, self.two)
        return torch.cat([functional.linear(y, self.shown) + bias, self.shown[None]], 1)


def shared() -> Component:
    return component(Shared(), {"latent": (1, 16, 16), "bias": (1, 1, 16)}, ("velocity", (1, 32, 16)))


@pytest.mark.parametrize("case", [mixed, shared])
def test_the_package_is_the_same_with_every_weight_folded(case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, (with_it, without), folded = CoreML(), (tmp_path / "with", tmp_path / "without"), []
    with_it.mkdir(), without.mkdir()
    monkeypatch.setattr(coreml_thrift, "WEIGHT", 1)
    fold = coreml_thrift.fold
    monkeypatch.setattr(coreml_thrift, "fold", lambda var: (fold(var), folded.append(var.val is None)))
    made = target.export(case(), "", "fp16", with_it, OPTIONS)
    assert sum(folded) > 2  # weights and biases did go this way
    with monkeypatch.context() as patch:
        patch.setattr(coreml_thrift, "thrifty", contextlib.nullcontext)
        plain = target.export(case(), "", "fp16", without, OPTIONS)
    assert contents(made.files, made.path) == contents(plain.files, plain.path)


def test_a_weight_in_fp32_is_gone_once_it_is_cast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision

    large = component(nn.Linear(300, 200), {"x": (1, 300)}, ("y", (1, 200)))
    weight = large.module.weight  # type: ignore[union-attr]
    seen: list[tuple[int, list[int]]] = []
    apply = FP16ComputePrecision.apply

    def watched(pass_: Any, program: Any) -> None:
        apply(pass_, program)
        held = [op.val.val for op in program.functions["main"].operations if op.op_type == "const"]
        wide = [a.size for a in held if getattr(a, "dtype", None) == np.float32 and a.size > 1]
        seen.append((weight.numel(), wide))

    monkeypatch.setattr(FP16ComputePrecision, "apply", watched)
    CoreML().export(dataclasses.replace(large, expendable=True), "", "fp16", tmp_path, OPTIONS)
    assert seen == [(0, [200])]  # the bias is small enough to wait


def test_a_program_that_is_not_sound_is_still_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coremltools.converters.mil.mil import Builder
    from coremltools.converters.mil.mil.passes.defs.cleanup.dead_code_elimination import dead_code_elimination

    def break_it(self: object, program: Any) -> None:
        operation = next(op for op in program.functions["main"].operations if op.op_type != "const")
        operation.outputs[0].child_ops.append(operation)

    monkeypatch.setattr(Builder, "name_count", Builder.name_count.copy())  # what fails leaves counts, and other names follow
    monkeypatch.setattr(dead_code_elimination, "apply", break_it)
    with pytest.raises(RuntimeError, match="should be consumed by op"):
        CoreML().export(mixed(), "", "fp16", tmp_path, OPTIONS)


def scikit_learn() -> tuple[bool, str]:
    """Whether coremltools loaded it into the tests' server, which was fresh, and the name of one of its classes."""
    from sklearn.cluster import KMeans

    from tests import preload

    return preload.SCIKIT_LEARN, KMeans.__name__


def test_scikit_learn_is_not_loaded_with_coremltools_and_can_be_afterwards() -> None:
    assert run_in_child("scikit-learn", scikit_learn)[0] == (False, "KMeans")


MESSAGES = """
import sys
from snapgen_deploy.export.shared import coremltools as thrift
messages = thrift.messages()
kept = messages.Model_pb2.Model.FromString(messages.Model_pb2.Model(specificationVersion=9).SerializeToString())
print(kept.specificationVersion, *sorted({"coremltools", "torch"} & set(sys.modules)))
"""


def test_messages_are_read_without_converters() -> None:
    done = subprocess.run([sys.executable, "-c", MESSAGES], capture_output=True, text=True, check=True)
    assert done.stdout == "9\n"


@pytest.mark.slow  # a fresh import of coremltools
def test_the_package_takes_over_messages_that_were_loaded_before() -> None:
    after = "ct = thrift.load(); print(ct.proto is messages, ct.models.MLModel.__name__, thrift.messages() is messages)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", MESSAGES + after], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["9", "True MLModel True"]
