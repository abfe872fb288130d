"""What a run must not pass over: NaN, infinity, whole results that vanish, masks that leave nothing, indices that wrap."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from snapgen_deploy.cli import app
from snapgen_deploy.cli.doctor import doctor
from snapgen_deploy.export.mil import PackageRunner, open_package
from tests.mil.mil_harness import TARGETS, Function, Program, mb, save, types

Specs = dict[str, Any]


def spec(*shape: int, dtype: Any = types.fp16) -> Any:
    return mb.TensorSpec(shape=shape, dtype=dtype)


def package(path: Path, inputs: Specs, build: Callable[..., Any], ios: int = 18) -> Path:
    with Function(inputs, opset_version=TARGETS[ios]) as function:
        made = build(**function.inputs)
        function.set_outputs(list(made) if isinstance(made, tuple) else [made])
    program = Program()
    program.add_function("main", function)
    return save(program, path, ios)


def call(folder: Path, path: Path, *more: str, **arrays: Any) -> Result:
    np.savez(folder / "x.npz", **arrays)
    given = ["--inputs", str(folder / "x.npz"), "--outputs", str(folder / "y.npz")]
    return CliRunner().invoke(app, ["run-coreml", str(path), *given, *more])


def layers(folder: Path, path: Path, *more: str, **arrays: Any) -> Result:
    np.savez(folder / "x.npz", **arrays)
    alone = typer.Typer()
    alone.command()(doctor)
    return CliRunner().invoke(alone, [str(path), "--layers", "--inputs", str(folder / "x.npz"), *more])


def masked(mask: Any, scores: Any) -> Any:
    """T5's mask in fp16: 0 * -inf where a token is used."""
    hidden = mb.mul(x=mb.sub(x=np.float16(1), y=mask, name="unused"), y=np.float16(-np.inf), name="hidden")
    return mb.softmax(x=mb.add(x=scores, y=hidden, name="sum"), axis=-1, name="y")


MASKED = {"mask": spec(1, 4), "scores": spec(1, 4)}
VALUES = {"mask": np.array([[1, 1, 1, 0]], np.float16), "scores": np.ones((1, 4), np.float16)}


@pytest.mark.parametrize("mode", ["fp32", "device"])
def test_the_operation_in_which_nan_begins_is_named(tmp_path: Path, mode: Any) -> None:
    path = package(tmp_path / "p.mlpackage", MASKED, masked)
    runner = open_package(path, mode=mode)
    trace = runner.trace()
    runner(VALUES)
    (begin,) = trace.beginnings
    assert (begin.what, begin.op, begin.output, begin.count) == ("NaN", "mul", "hidden", 3)
    assert begin.because == "its constant y holds infinity"
    assert (trace.holding("NaN"), trace.holding("infinity")) == (3, 2)  # hidden, sum, y; hidden, sum
    result = call(tmp_path, path, "--mode", mode, **VALUES)
    assert result.exit_code == 1
    assert "not finite: NaN in 3 operations, infinity in 2 operations; y of the results" in result.stdout
    assert "NaN begins in op mul (name 'hidden', output hidden, number" in result.stdout
    assert np.isnan(np.load(tmp_path / "y.npz")["y"]).all()
    if mode == "device":
        assert "half precision: NaN in 3 of 6 operations; first:\n  mul hidden: " in result.stdout
        assert "NaN 0" not in result.stdout
    data = json.loads(call(tmp_path, path, "--mode", mode, "--json", **VALUES).stdout)["not_finite"]
    assert [(b["what"], b["output"]) for b in data["begins"]] == [("NaN", "hidden")]
    assert (data["nan_operations"], data["infinity_operations"], data["outputs"]) == (3, 2, ["y"])


def test_infinity_begins_where_finite_numbers_make_it(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        high = mb.exp(x=x, name="high")
        return mb.sub(x=high, y=mb.mul(x=high, y=np.float32(1), name="same"), name="y")

    path = package(tmp_path / "p.mlpackage", {"x": spec(2, dtype=types.fp32)}, build)
    trace = (runner := open_package(path)).trace()
    runner({"x": np.array([1, 100], np.float32)})
    assert [(b.what, b.output, b.because) for b in trace.beginnings] == [
        ("infinity", "high", "all that it was given is finite"),
        ("NaN", "y", "its parameter x holds infinity"),
    ]
    assert call(tmp_path, path, x=np.array([1, 2], np.float32)).exit_code == 0


def test_nan_that_is_given_and_infinity_that_is_meant(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.softmax(x=mb.add(x=x, y=np.array([0, -np.inf], np.float32)), axis=0, name="y")

    path = package(tmp_path / "p.mlpackage", {"x": spec(2, dtype=types.fp32)}, build)
    good = call(tmp_path, path, x=np.array([1, 2], np.float32))
    assert (good.exit_code, "not finite" in good.stdout) == (0, False)
    bad = call(tmp_path, path, x=np.array([1, np.nan], np.float32))
    assert bad.exit_code == 1
    assert "NaN begins in input 'x': it was given NaN" in bad.stdout


def test_doctor_says_where_nan_begins_without_a_library_s_warning(tmp_path: Path) -> None:
    path = package(tmp_path / "p.mlpackage", MASKED, masked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = layers(tmp_path, path, **VALUES)
    assert done.exit_code == 1
    assert "first wrong: mul 'hidden' (output hidden), not a number" in done.stdout
    assert "NaN begins in op mul (name 'hidden'" in done.stderr


def test_doctor_passes_a_mask_that_is_meant_to_be_infinite(tmp_path: Path) -> None:
    def build(scores: Any) -> Any:
        return mb.softmax(x=mb.add(x=scores, y=np.array([[0, 0, 0, -np.inf]], np.float16), name="sum"), axis=-1, name="y")

    path = package(tmp_path / "p.mlpackage", {"scores": spec(1, 4)}, build)
    done = layers(tmp_path, path, scores=VALUES["scores"])
    assert done.exit_code == 0, done.output
    assert "no wrong layer" in done.stdout


ATTENTION = {"q": spec(1, 2, 3, 4, dtype=types.fp32), "m": spec(3, 3, dtype=types.fp32)}
Q = np.ones((1, 2, 3, 4), np.float32)
ROWS = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0]], np.float32)


def boolean(q: Any, m: Any) -> Any:
    return mb.scaled_dot_product_attention(query=q, key=q, value=q, attn_mask=mb.cast(x=m, dtype="bool"), name="y")


def added(q: Any, m: Any) -> Any:
    return mb.scaled_dot_product_attention(query=q, key=q, value=q, attn_mask=mb.log(x=m, epsilon=0.0), name="y")


@pytest.mark.parametrize("build", [boolean, added])
def test_a_mask_that_leaves_a_row_no_key(tmp_path: Path, build: Any) -> None:
    path = package(tmp_path / "p.mlpackage", ATTENTION, build)
    words = "op scaled_dot_product_attention (name 'y', output y, number"
    said = "its mask leaves 1 of 3 rows no key; by the formula those are NaN"
    result = call(tmp_path, path, q=Q, m=ROWS)
    assert words in result.stderr
    assert said in result.stderr
    assert said in layers(tmp_path, path, q=Q, m=ROWS).stderr
    (warning,) = json.loads(layers(tmp_path, path, "--json", q=Q, m=ROWS).stdout)["components"]["p.mlpackage"]["warnings"][-1:]
    assert said in warning
    if build is boolean:
        assert result.exit_code == 0
    fine = open_package(path)
    fine({"q": Q, "m": np.tril(np.ones((3, 3), np.float32))})
    assert fine.warnings() == ()


def warned(path: Path, *values: Any, name: str = "i") -> tuple[PackageRunner, np.ndarray]:
    runner = open_package(path)
    (result,) = runner({name: np.array(values)}).values()
    return runner, result


def test_indices_that_wrap(tmp_path: Path) -> None:
    def build(i: Any) -> Any:
        return mb.cast(x=mb.cast(x=i, dtype="int16", name="narrow"), dtype="int32", name="y")

    path = package(tmp_path / "p.mlpackage", {"i": spec(2, dtype=types.int32)}, build)
    runner, result = warned(path, -3, 100000)
    assert result.tolist() == [-3, -31072]
    (warning,) = runner.warnings()
    assert warning.startswith("op cast (name 'narrow', output narrow, number")
    assert warning.endswith("values -3 ... 100000 do not all fit int16 (-32768 ... 32767) and wrap: 100000 became -31072")
    assert warned(path, -32768, 32767)[0].warnings() == ()
    assert len(warned(path, -32769, 0)[0].warnings()) == 1


def test_a_wrapped_index_is_told_before_the_operation_that_fails_of_it(tmp_path: Path) -> None:
    def build(i: Any) -> Any:
        return mb.gather(x=np.arange(9, dtype=np.float32), indices=mb.cast(x=i, dtype="int16"), axis=0, name="y")

    path = package(tmp_path / "p.mlpackage", {"i": spec(1, dtype=types.int32)}, build, 17)
    result = call(tmp_path, path, i=np.array([100000], np.int32))
    assert result.exit_code == 2
    warning, error = (line for line in result.stderr.splitlines() if line)
    assert "100000 became -31072" in warning
    assert error.startswith("error: op gather")


def test_real_numbers_that_no_integer_holds(tmp_path: Path) -> None:
    path = package(
        tmp_path / "p.mlpackage", {"x": spec(2, dtype=types.fp32)}, lambda x: mb.cast(x=x, dtype="int32", name="y"), 17
    )
    for good in ((-0.5, 2147483520.0), (-2147483648.0, 0.0)):
        assert warned(path, *good, name="x")[0].warnings() == ()
    for bad in ((0.0, 2147483648.0), (np.nan, 0.0)):
        assert len(warned(path, *bad, name="x")[0].warnings()) == 1


def test_a_whole_result_that_vanishes_has_a_verdict(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.mul(x=mb.mul(x=x, y=np.float16(1e-4), name="small"), y=np.float16(1e-4), name="y")

    path = package(tmp_path / "p.mlpackage", {"x": spec(3)}, build)
    runner = open_package(path, mode="device")
    runner({"x": np.array([1, 0, -1], np.float16)})
    report = runner.report()
    assert (report.emptied, report.finite, report.clean) == (True, True, False)
    assert [(s.output, s.emptied) for s in report.ops] == [("x", 0), ("small", 0), ("y", 1)]
    result = call(tmp_path, path, "--mode", "device", x=np.array([1, 0, -1], np.float16))
    assert result.exit_code == 1
    assert "half precision: vanished to 0 in 1 of 3 operations; first:\n  mul y: " in result.stdout
    assert "no overflow" not in result.stdout
    partly = call(tmp_path, path, "--mode", "device", x=np.array([1, 0, 60000], np.float16))
    assert partly.exit_code == 0
    assert "half precision: no overflow, no NaN in 3 operations; the tightest:" in partly.stdout
    nothing = call(tmp_path, path, "--mode", "device", x=np.zeros(3, np.float16))
    assert nothing.exit_code == 0, "zeros that stay zeros have not vanished"
