"""Device mode: what is rounded, and what is recorded about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snapgen_deploy.export.mil import PackageRunner, RunReport, open_package, precision
from snapgen_deploy.export.mil.precision import Device, NamedResult
from tests.mil.mil_harness import TARGETS, Function, Program, mb, save, types

HALF = types.fp16


def package(path: Path, shape: tuple[int, ...], build: Any) -> Path:
    """A program with one fp16 input x and the outputs that `build` names."""
    with Function({"x": mb.TensorSpec(shape=shape, dtype=HALF)}, opset_version=TARGETS[16]) as function:
        made = build(function.inputs["x"])
        function.set_outputs(list(made) if isinstance(made, tuple) else [made])
    program = Program()
    program.add_function("main", function)
    return save(program, path, 16)


def run(runner: PackageRunner, *values: float) -> np.ndarray:
    (result,) = runner({"x": np.array(values, np.float32)}).values()
    return result


def stat(report: RunReport, output: str) -> Any:
    (found,) = [s for s in report.ops if s.output == output]
    return found


def test_results_are_rounded_after_every_operation(tmp_path: Path) -> None:
    path = package(
        tmp_path / "p.mlpackage",
        (3,),
        lambda x: mb.sub(x=mb.add(x=x, y=np.float16(2048)), y=np.float16(2048), name="y"),
    )
    values = (0.3, 1.0, 1.5)
    exact, device = open_package(path), open_package(path, mode="device")
    assert np.allclose(run(exact, *values), values, atol=1e-4)
    half = np.array(values, np.float16)
    wanted = (half + np.float16(2048)) - np.float16(2048)  # numpy rounds after each operation too
    got = run(device, *values)
    assert got.dtype == np.float16
    assert got.tolist() == wanted.tolist() == [0.0, 0.0, 2.0]


def test_sums_accumulate_in_float32(tmp_path: Path) -> None:
    ones = np.full((1, 4096), 1, np.float16)
    path = package(tmp_path / "p.mlpackage", (4096,), lambda x: mb.matmul(x=ones, y=mb.expand_dims(x=x, axes=[1]), name="y"))
    got = open_package(path, mode="device")({"x": np.full(4096, 1.0009765625, np.float32)})["y"]
    assert got.item() == np.float16(4096 * 1.0009765625)  # an fp16 accumulator stops at 2048


def test_overflow_is_seen_though_a_later_operation_hides_it(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        big = mb.mul(x=x, y=np.float16(300), name="big")
        return mb.clip(x=big, alpha=np.float16(-1), beta=np.float16(1), name="y")

    path = package(tmp_path / "p.mlpackage", (4,), build)
    runner = open_package(path, mode="device")
    assert run(runner, 1, -2, 218, 3).tolist() == [1, -1, 1, 1]
    assert runner.report().clean
    run(runner, 1, -2, 250, -250)
    report = runner.report()
    big = stat(report, "big")
    assert report.overflowed
    assert not report.clean
    assert not report.has_nan
    assert (big.overflow, big.elements, big.largest) == (2, 8, 75000)
    assert report.tightest(1) == (big,)
    assert str(big) == "mul big: largest 75000 (114.50% of 65504), overflowed 2, NaN 0, to zero 0.00%"
    assert report.runs == 2
    assert big.tightness == pytest.approx(75000 / 65504)


def test_rounding_boundary_of_overflow(tmp_path: Path) -> None:
    """65519 rounds down to 65504, 65520 rounds to infinity."""
    path = package(tmp_path / "p.mlpackage", (2,), lambda x: mb.mul(x=x, y=np.float16(2), name="y"))
    runner = open_package(path, mode="device")
    run(runner, 32752, 1)  # 65504 exactly
    assert not runner.report().overflowed
    path = package(tmp_path / "q.mlpackage", (2,), lambda x: mb.add(x=x, y=np.float16(15), name="y"))
    runner = open_package(path, mode="device")
    assert run(runner, 65504, 0)[0] == 65504
    assert not runner.report().overflowed
    path = package(tmp_path / "r.mlpackage", (2,), lambda x: mb.add(x=x, y=np.float16(16), name="y"))
    runner = open_package(path, mode="device")
    assert np.isinf(run(runner, 65504, 0)[0])
    assert stat(runner.report(), "y").overflow == 1


def test_nan_and_infinity(tmp_path: Path) -> None:
    path = package(tmp_path / "p.mlpackage", (3,), lambda x: mb.real_div(x=x, y=mb.sub(x=x, y=x), name="y"))
    runner = open_package(path, mode="device")
    run(runner, 0, 1, -1)
    report = runner.report()
    y = stat(report, "y")
    assert (y.nan, y.infinite, y.overflow) == (1, 2, 2), "a division by zero: everything that went in was finite"
    assert report.has_nan
    assert not report.clean


def test_underflow_share(tmp_path: Path) -> None:
    path = package(tmp_path / "p.mlpackage", (4,), lambda x: mb.mul(x=x, y=np.float16(1e-4), name="y"))
    runner = open_package(path, mode="device")
    run(runner, 1, 1e-4, 1e-4, 0)
    y = stat(runner.report(), "y")
    assert (y.vanished, y.underflow) == (2, 0.5)


def test_inputs_and_float32_operations(tmp_path: Path) -> None:
    """An fp16 input is recorded; what the program computes in fp32 is neither rounded nor recorded."""
    path = package(
        tmp_path / "p.mlpackage",
        (2,),
        lambda x: mb.mul(x=mb.cast(x=x, dtype="fp32"), y=np.float32(1e5), name="y"),
    )
    runner = open_package(path, mode="device")
    got = run(runner, 1.0001, 2)
    assert got.dtype == np.float32
    assert got.tolist() == [1e5, 2e5]
    report = runner.report()
    assert [(s.op, s.output) for s in report.ops] == [("input", "x")]


def test_moving_values_is_not_an_operation_to_record(tmp_path: Path) -> None:
    path = package(tmp_path / "p.mlpackage", (2, 3), lambda x: mb.transpose(x=mb.relu(x=x, name="r"), perm=[1, 0], name="y"))
    runner = open_package(path, mode="device")
    runner({"x": np.ones((2, 3), np.float32)})
    assert [s.output for s in runner.report().ops] == ["x", "r"]


def test_fp32_mode_reports_nothing_and_is_never_clean(tmp_path: Path) -> None:
    path = package(tmp_path / "p.mlpackage", (2,), lambda x: mb.relu(x=x, name="y"))
    runner = open_package(path)
    run(runner, 1, 2)
    assert runner.report().ops == ()
    assert not runner.report().clean
    assert not open_package(path, mode="device").report().clean, "nothing was run"


SPECIAL = (np.nan, np.inf, -np.inf, 70000.0, -70000.0, 65519.0, -65519.0, 1e-9, -1e-9, 3e-8, -0.0, 0.0)


@pytest.mark.parametrize("values", [(), SPECIAL, (1e-9, -2e-9, 0.0), (0.0, -0.0)])
@pytest.mark.parametrize("layout", ["plain", "turned", "gaps", "repeated", "empty", "scalar"])
def test_rounding_in_pieces_is_rounding_at_once(
    monkeypatch: pytest.MonkeyPatch, layout: str, values: tuple[float, ...]
) -> None:
    """Against numpy, over the whole array: what is stored, and every count."""
    monkeypatch.setattr(precision, "_PIECE", 7)
    draw = torch.Generator().manual_seed(len(values))
    x = torch.zeros(5, 3, 11) if values and len(values) < 4 else torch.randn(5, 3, 11, generator=draw) * 100
    x.view(-1)[: 8 * len(values) : 8] = torch.tensor(values)
    x = {
        "plain": x, "turned": x.permute(2, 0, 1), "gaps": x[:, :, ::2], "repeated": x[:, :1].expand(5, 4, 11),
        "empty": x[:0], "scalar": x[0, 0, 0],
    }[layout]  # fmt: skip
    before = x.numpy().copy()
    with np.errstate(all="ignore"):
        half = before.astype(np.float16)
    found, device = {}, Device()
    for shared in (True, False):
        kept = x.clone() if layout in ("plain", "turned", "scalar") else x
        stored = device.settle(kept, NamedResult("op", str(shared), 0, shared))
        assert stored.shape == x.shape
        assert np.array_equal(stored.numpy(), half.astype(np.float32), equal_nan=True)
        assert np.array_equal(kept.numpy(), before, equal_nan=True) or (not shared and stored is kept)
        found[shared] = stat(device.report(1), str(shared))
    finite = np.isfinite(before)
    nonzero, left = np.count_nonzero(before), np.count_nonzero(half)
    for one in found.values():
        assert (one.elements, one.nan, one.infinite) == (before.size, np.isnan(before).sum(), np.isinf(before).sum())
        assert one.overflow == (finite & np.isinf(half)).sum()
        assert one.largest == max(np.abs(before[finite]), default=0.0)
        assert (one.vanished, one.emptied) == (nonzero - left, int(nonzero > 0 and left == 0))


def test_a_result_that_is_its_argument_is_not_rounded_in_place(tmp_path: Path) -> None:
    """A cast to fp16 of an fp32 value that is read again in fp32."""

    def build(x: Any) -> Any:
        exact = mb.mul(x=mb.cast(x=x, dtype="fp32"), y=np.float32(1.0001))
        half = mb.cast(x=mb.cast(x=exact, dtype="fp16"), dtype="fp32")
        return mb.sub(x=exact, y=half, name="y")

    runner = open_package(package(tmp_path / "p.mlpackage", (3,), build), mode="device")
    values = np.array([1.0, 3.0, 1000.0], np.float32)
    exact = values * np.float32(1.0001)
    assert np.allclose(run(runner, *values), exact - exact.astype(np.float16), rtol=1e-3)
    assert np.abs(run(runner, *values)).max() > 0.01
