"""Scalars, empty axes and sizes that are known only at run time, through every family of operations.

All cases are in one package. Its input has six numbers; `non_zero` finds the positive ones, a vector whose length no
operation after it knows before it runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from snapgen_deploy.export.mil import PackageRunner, open_package
from tests.mil.mil_cases_batches import BATCHES
from tests.mil.mil_cases_ranks import SCALARS, VECTORS
from tests.mil.mil_harness import TARGETS, Arrays, Function, Program, mb, plain, relative, save, types

IOS = 17
ALONG = VECTORS | BATCHES
COUNTS = {
    0: np.array([-1, -0.5, -0.1, -0.2, -0.3, -0.9], np.float32),
    1: np.array([-1, -0.5, 0.4, -0.2, -0.3, -0.9], np.float32),
    4: np.array([0.8, -0.5, 0.4, 0.2, -0.3, 0.6], np.float32),
}


def _build(x: Any, k: Any) -> list[Any]:
    places = mb.non_zero(x=mb.cast(x=mb.greater(x=x, y=np.float32(0)), dtype="fp32"))
    v = mb.gather_nd(x=x, indices=places)
    i = mb.squeeze(x=places, axes=[1])
    m = mb.mul(x=mb.expand_dims(x=v, axes=[1]), y=np.array([1, 2, 3], np.float32))
    s, k = mb.abs(x=mb.gather(x=x, indices=np.int32(2), axis=0)), mb.squeeze(x=k)
    made = {f"vector__{name}": build(v, m, i) for name, (build, _) in ALONG.items()}
    made |= {f"scalar__{name}": build(s, k) for name, (build, _) in SCALARS.items()}
    outputs = []
    for name, vars_ in made.items():
        for n, var in enumerate(vars_ if isinstance(vars_, tuple | list) else (vars_,)):
            out = plain(var)
            out.name = f"{name}__{n}"
            outputs.append(out)
    return outputs


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> PackageRunner:
    inputs = {"x": mb.TensorSpec(shape=(6,), dtype=types.fp32), "k": mb.TensorSpec(shape=(1,), dtype=types.int32)}
    with Function(inputs, opset_version=TARGETS[IOS]) as function:
        function.set_outputs(_build(**function.inputs))
    program = Program()
    program.add_function("main", function)
    return open_package(save(program, tmp_path_factory.mktemp("ranks") / "p.mlpackage", IOS), mode="device")


def _compare(outputs: Arrays, name: str, wanted: Any) -> None:
    for n, array in enumerate(wanted if isinstance(wanted, tuple) else (wanted,)):
        got, array = outputs[f"{name}__{n}"], np.asarray(array)
        assert got.shape == array.shape, name
        assert (got.dtype.kind == "f") == (array.dtype.kind == "f"), name
        assert relative(got, array) <= 1e-5, name


@pytest.mark.parametrize("count", COUNTS)
def test_sizes_of_run_time(runner: PackageRunner, count: int) -> None:
    x = COUNTS[count]
    outputs = runner({"x": x, "k": np.array([3])})
    i = np.flatnonzero(x > 0).astype(np.int32)
    v = x[i]
    m = v[:, None] * np.array([1, 2, 3], np.float32)
    for name, (_, expect) in ALONG.items():
        _compare(outputs, f"vector__{name}", expect(v, m, i))


@pytest.mark.parametrize("k", [0, 5])
def test_scalars(runner: PackageRunner, k: int) -> None:
    outputs = runner({"x": COUNTS[1], "k": np.array([k])})
    for name, (_, expect) in SCALARS.items():
        _compare(outputs, f"scalar__{name}", expect(np.float32(0.4), k))
