"""Packages as an app meets them: interfaces, functions, states, and what is refused."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snapgen_deploy.export.mil import OpError, PackageError, functions, open_package
from snapgen_deploy.export.mil.interpreter import Plan
from snapgen_deploy.export.mil.precision import Device, NamedResult, OpStat, RunReport
from snapgen_deploy.export.mil.saved.reader import model_file, read_package
from tests.mil.mil_harness import TARGETS, Function, Program, ct, mb, save, types

RNG = np.random.default_rng(2)


def program(inputs: dict[str, Any], build: Any, ios: int = 18, **options: Any) -> Any:
    with Function(inputs, opset_version=TARGETS[ios]) as function:
        made = build(**function.inputs)
        function.set_outputs(list(made) if isinstance(made, tuple) else [made])
    whole = Program()
    whole.add_function("main", function)
    return whole


def spec(*shape: int, dtype: Any = types.fp32) -> Any:
    return mb.TensorSpec(shape=shape, dtype=dtype)


@pytest.fixture
def doubler(tmp_path: Path) -> Path:
    built = program({"x": spec(2, 3), "n": spec(1, dtype=types.int32)}, _double)
    return save(built, tmp_path / "doubler.mlpackage", 18)


def _double(x: Any, n: Any) -> Any:
    weight = mb.const(val=np.arange(12, dtype=np.float32).reshape(4, 3), name="weight")
    return mb.mul(x=mb.linear(x=x, weight=weight, name="l"), y=mb.cast(x=n, dtype="fp32"), name="y")


def test_description_and_call(doubler: Path) -> None:
    runner = open_package(doubler)
    assert [(p.name, p.kind, p.dtype, p.shape) for p in runner.inputs] == [
        ("x", "tensor", "float32", (2, 3)),
        ("n", "tensor", "int32", (1,)),
    ]
    assert [p.name for p in runner.outputs] == ["y"]
    assert runner.ops == {"linear": 1, "cast": 1, "mul": 1}
    x = RNG.normal(size=(2, 3)).astype(np.float32)
    got = runner({"x": x, "n": np.array([3])})["y"]
    assert np.allclose(got, x @ np.arange(12).reshape(4, 3).T * 3, atol=1e-5)
    assert got.dtype == np.float32


def test_results_do_not_alias_inputs(tmp_path: Path) -> None:
    path = save(program({"x": spec(4)}, lambda x: mb.identity(x=x, name="y")), tmp_path / "p.mlpackage", 18)
    x = np.arange(4, dtype=np.float32)
    got = open_package(path)({"x": x})["y"]
    x[:] = 9
    assert got.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"x": np.zeros((2, 3), np.float32)}, ["got inputs x; expected x, n"]),
        ({"x": np.zeros((2, 3)), "n": np.ones(1, int), "z": np.zeros(1)}, ["got inputs n, x, z; expected x, n"]),
        ({"x": np.zeros((2, 4), np.float32), "n": np.ones(1, int)}, ["'x'", "[2, 4]", "[2, 3]"]),
        ({"x": np.zeros((2, 3), np.float32), "n": np.array([1.5])}, ["'n'", "float64", "int32"]),
        ({"x": np.zeros((2, 3), np.float32), "n": np.array([2**40])}, ["'n'", "1099511627776"]),
        ({"x": np.array([["a"] * 3] * 2), "n": np.ones(1, int)}, ["'x'", "<U1"]),
    ],
)
def test_inputs_refused(doubler: Path, inputs: dict[str, np.ndarray], words: list[str]) -> None:
    with pytest.raises(PackageError) as error:
        open_package(doubler)(inputs)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_halves(tmp_path: Path) -> None:
    built = program({"x": spec(3, dtype=types.fp16)}, lambda x: mb.mul(x=x, y=np.float16(3), name="y"), 16)
    path = save(built, tmp_path / "p.mlpackage", 16)
    runner = open_package(path, mode="device")
    assert [p.dtype for p in (*runner.inputs, *runner.outputs)] == ["float16", "float16"]
    x = np.array([0.1, 1, 2], np.float16)
    got = runner({"x": x})["y"]
    assert got.dtype == np.float16
    assert got.tolist() == (x * np.float16(3)).tolist()
    assert open_package(path)({"x": x})["y"].dtype == np.float32


def test_results_do_not_alias_constants(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.add(x=x, y=np.float32(0), name="y"), mb.identity(x=np.arange(3, dtype=np.float32), name="c")

    runner = open_package(save(program({"x": spec(3)}, build), tmp_path / "p.mlpackage", 18))
    x = {"x": np.zeros(3, np.float32)}
    runner(x)["c"][:] = 7
    assert runner(x)["c"].tolist() == [0, 1, 2]


def test_functions_of_a_package(tmp_path: Path) -> None:
    weight = RNG.normal(size=(40, 3)).astype(np.float32)

    def scaled(factor: float) -> Any:
        return lambda x: mb.mul(x=mb.linear(x=x, weight=weight), y=np.float32(factor), name="y")

    for name, factor in (("one", 1.0), ("two", 2.0)):
        save(program({"x": spec(2, 3)}, scaled(factor)), tmp_path / f"{name}.mlpackage", 18)
    joined = ct.utils.MultiFunctionDescriptor()
    for name in ("one", "two"):
        joined.add_function(str(tmp_path / f"{name}.mlpackage"), src_function_name="main", target_function_name=name)
    joined.default_function_name = "two"
    path = tmp_path / "both.mlpackage"
    ct.utils.save_multifunction(joined, str(path))
    assert functions(path) == ("two", "one")
    x = RNG.normal(size=(2, 3)).astype(np.float32)
    for function, factor in ((None, 2), ("one", 1), ("two", 2)):
        assert np.allclose(open_package(path, function=function)({"x": x})["y"], x @ weight.T * factor, atol=1e-5)
    with pytest.raises(PackageError, match="no function 'three'; it has one, two"):
        open_package(path, function="three")


def test_states(tmp_path: Path) -> None:
    """A counter in a state: each caller's state is its own, and none given means fresh zeros."""

    def count(x: Any, total: Any) -> Any:
        new = mb.add(x=mb.read_state(input=total), y=x, name="new")
        return mb.mul(x=mb.coreml_update_state(state=total, value=new), y=np.float16(10), name="y")

    state = mb.StateTensorSpec((2,), dtype=types.fp16)
    path = save(program({"x": spec(2, dtype=types.fp16), "total": state}, count), tmp_path / "p.mlpackage", 18)
    runner = open_package(path)
    assert [p.name for p in runner.states] == ["total"]
    x = {"x": np.array([1, 2], np.float16)}
    mine, other = runner.make_state(), runner.make_state()
    assert [runner(x, mine)["y"].tolist() for _ in range(3)] == [[10, 20], [20, 40], [30, 60]]
    assert runner(x, other)["y"].tolist() == [10, 20]
    assert runner(x)["y"].tolist() == [10, 20]
    assert mine.read("total").tolist() == [3, 6]


def test_unsupported_operation_is_named(tmp_path: Path) -> None:
    def listed(x: Any) -> Any:
        one = mb.list_write(ls=mb.make_list(elem_shape=(np.int32(1),), name="made"), index=np.int32(0), value=x)
        return mb.list_read(ls=one, index=np.int32(0), name="y")

    path = save(program({"x": spec(1)}, listed), tmp_path / "p.mlpackage", 18)
    words = (
        r"op list_read \(name 'y', output y, number \d+ of its function\).*not supported.*also lacking: list_write, make_list"
    )
    with pytest.raises(OpError, match=words):
        open_package(path)


def test_failing_operation_is_named(tmp_path: Path) -> None:
    built = program(
        {"x": spec(4, 2), "i": spec(2, dtype=types.int32)}, lambda x, i: mb.gather(x=x, indices=i, axis=0, name="y"), 17
    )
    runner = open_package(save(built, tmp_path / "p.mlpackage", 17))
    assert runner({"x": np.eye(4, 2), "i": np.array([0, 3])})["y"].shape == (2, 2)
    for bad in (4, -1):  # from iOS 17 on, negative indices are undefined
        with pytest.raises(OpError, match=r"op gather \(name 'y', output y, .*out of range for 4 cells"):
            runner({"x": np.eye(4, 2), "i": np.array([0, bad])})


def test_random_operations(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return (
            mb.random_normal(shape=[4000], mean=2.0, stddev=0.5, seed=3, name="normal"),
            mb.random_uniform(shape=[4000], low=-1.0, high=3.0, seed=3, name="uniform"),
            mb.random_bernoulli(shape=[4000], prob=0.25, seed=3, name="bernoulli"),
            mb.random_categorical(x=x, size=4000, mode="probs", seed=3, name="categorical"),
        )

    path = save(program({"x": spec(1, 3)}, build, 15), tmp_path / "p.mlpackage", 15)
    x = {"x": np.array([[0.2, 0.0, 0.8]], np.float32)}
    got, again = open_package(path)(x), open_package(path)(x)
    assert all(np.array_equal(got[k], again[k]) for k in got)
    assert abs(got["normal"].mean() - 2) < 0.05
    assert abs(got["normal"].std() - 0.5) < 0.05
    assert abs(got["uniform"].mean() - 1) < 0.1
    assert -1 <= got["uniform"].min() < got["uniform"].max() < 3
    assert abs(got["bernoulli"].mean() - 0.25) < 0.05
    assert set(np.unique(got["categorical"])) == {0, 2}
    assert abs((got["categorical"] == 2).mean() - 0.8) < 0.05


class Alive(Device):
    """Counts how many results are still alive when each operation ends."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[weakref.ref[torch.Tensor]] = []
        self.peak = 0

    def settle(self, x: torch.Tensor, made: NamedResult, finite: Any = None) -> torch.Tensor:
        rounded = x.half().float()
        self.results.append(weakref.ref(rounded))
        self.peak = max(self.peak, sum(r() is not None for r in self.results))
        return rounded

    def report(self, runs: int) -> RunReport:
        return RunReport("device", runs, tuple[OpStat, ...]())


@pytest.mark.parametrize("how", ["divided by what vanished", "masked", "of an infinite input"])
def test_an_infinity_out_of_finite_numbers_is_an_overflow(tmp_path: Path, how: str) -> None:
    def divided(x: Any) -> Any:
        return mb.real_div(x=np.float16(1), y=mb.mul(x=x, y=np.float16(1e-4)), name="y")  # 1e-9 is zero in fp16

    def masked(x: Any) -> Any:
        return mb.softmax(x=mb.add(x=x, y=np.array([0, 0, -np.inf, 0], np.float16)), axis=0, name="y")

    build = {"masked": masked}.get(how, divided)
    path = save(program({"x": spec(4, dtype=types.fp16)}, build, 16), tmp_path / "p.mlpackage", 16)
    runner = open_package(path, mode="device")
    runner({"x": np.full(4, np.inf if "input" in how else 1e-5, np.float32)})
    report = runner.report()
    assert report.clean == (how != "divided by what vanished")
    assert report.overflowed != report.clean


def test_intermediates_are_let_go(tmp_path: Path) -> None:
    def chain(x: Any) -> Any:
        for i in range(30):
            x = mb.add(x=x, y=np.float16(1), name=f"y{i}")
        return x

    path = save(program({"x": spec(4, dtype=types.fp16)}, chain, 16), tmp_path / "p.mlpackage", 16)
    alive = Alive()
    result = Plan(read_package(path).functions["main"], alive).run({"x": torch.zeros(4)})
    gc.collect()
    assert len(alive.results) == 31
    assert alive.peak <= 3
    assert result["y29"].tolist() == [30.0] * 4


def test_threads_are_put_back(doubler: Path) -> None:
    before = torch.get_num_threads()
    open_package(doubler, threads=before + 1)({"x": np.zeros((2, 3)), "n": np.ones(1, int)})
    assert torch.get_num_threads() == before
    with pytest.raises(PackageError, match="threads must be at least 1, got 0"):
        open_package(doubler, threads=0)


def test_unknown_mode(doubler: Path) -> None:
    with pytest.raises(PackageError, match="mode 'int8' is unknown; expected fp32 or device"):
        open_package(doubler, mode="int8")  # type: ignore[arg-type]


def _break(package: Path, what: str) -> None:
    weights = package / "Data/com.apple.CoreML/weights/weight.bin"
    if what == "manifest":
        (package / "Manifest.json").write_text("{")
    elif what == "escape":
        manifest = json.loads((package / "Manifest.json").read_text())
        manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = "../../secret"
        (package / "Manifest.json").write_text(json.dumps(manifest))
    elif what == "model":
        model_file(package).write_bytes(b"\xff" * 40)
    elif what == "truncated":
        weights.write_bytes(weights.read_bytes()[:-32])
    elif what == "sentinel":
        data = bytearray(weights.read_bytes())
        data[64:68] = b"\0\0\0\0"
        weights.write_bytes(bytes(data))
    elif what == "version":
        data = bytearray(weights.read_bytes())
        data[4:8] = b"\x09\0\0\0"
        weights.write_bytes(bytes(data))
    elif what == "weights":
        weights.unlink()
    else:
        shutil.rmtree(package)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("gone", "no such .mlpackage"),
        ("manifest", "Manifest.json is missing or malformed"),
        ("escape", "which is not in it"),
        ("model", "not a Core ML specification"),
        ("truncated", "truncated"),
        ("sentinel", "no tensor at 64"),
        ("version", "not a version 2 weight file"),
        ("weights", "weight.bin: cannot be read"),
    ],
)
def test_broken_packages(doubler: Path, what: str, words: str) -> None:
    _break(doubler, what)
    with pytest.raises(PackageError, match=words):
        open_package(doubler)


def test_other_kinds_of_model(tmp_path: Path) -> None:
    spec_ = ct.proto.Model_pb2.Model()
    spec_.specificationVersion = 4
    spec_.neuralNetwork.SetInParent()
    package = tmp_path / "nn.mlpackage"
    (package / "Data").mkdir(parents=True)
    (package / "Data/model.mlmodel").write_bytes(spec_.SerializeToString())
    manifest = {"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "model.mlmodel"}}}
    (package / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PackageError, match="holds a neuralNetwork, expected an ML Program"):
        open_package(package)


def test_weights_as_coremltools_reads_them(doubler: Path) -> None:
    """Our reader of weight files against the native one that writes them."""
    from coremltools.libmilstoragepython import _BlobStorageReader

    function = read_package(doubler).functions["main"]
    (weight,) = [o.inputs["val"][0] for o in function.operations if o.type == "const" and o.name == "weight"]
    native = _BlobStorageReader(str(doubler / "Data/com.apple.CoreML/weights/weight.bin")).read_float_data(64)
    assert not isinstance(weight, str)
    assert np.array_equal(np.asarray(weight.read()).reshape(-1), np.asarray(native))
