"""`cond` and `while_loop`: values from outside, states within, shapes that grow, and where a failure lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from snapgen_deploy.export.mil import OpError, PackageRunner, open_package
from tests.mil.mil_harness import TARGETS, Function, Program, ct, mb, relative, save, types


def spec(*shape: int, dtype: Any = types.fp32) -> Any:
    return mb.TensorSpec(shape=shape, dtype=dtype)


def opened(path: Path, inputs: dict[str, Any], build: Any, mode: Any = "fp32", ios: int = 18) -> PackageRunner:
    with Function(inputs, opset_version=TARGETS[ios]) as function:
        made = build(**function.inputs)
        function.set_outputs(list(made) if isinstance(made, tuple | list) else [made])
    program = Program()
    program.add_function("main", function)
    return open_package(save(program, path, ios), mode=mode)


def test_cond(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        total = mb.reduce_sum(x=x, axes=[0])
        kept = mb.mul(x=x, y=np.float32(3), name="kept")
        chosen = mb.cond(
            pred=mb.greater(x=total, y=np.float32(0)),
            _true_fn=lambda: (mb.add(x=kept, y=np.float32(1)), x),
            _false_fn=lambda: (mb.sub(x=kept, y=total), mb.const(val=np.array([7, 8], np.float32))),
        )
        return *chosen, mb.identity(x=kept, name="after")

    runner = opened(tmp_path / "p.mlpackage", {"x": spec(2)}, build)
    assert runner.ops["add"] == runner.ops["sub"] == runner.ops["cond"] == 1
    for x, first, second in (([1, 2], [4, 7], [1, 2]), ([1, -3], [5, -7], [7, 8])):
        got = list(runner({"x": np.array(x, np.float32)}).values())
        assert [a.tolist() for a in got] == [first, second, [3 * v for v in x]]


def test_while_loop(tmp_path: Path) -> None:
    """Doubles x until its sum reaches a limit from outside: numpy loops alike. No round leaves x as it is."""

    def build(x: Any, limit: Any) -> Any:
        outside = mb.mul(x=x, y=np.float32(2), name="step")

        def below(count: Any, y: Any) -> Any:
            return mb.less(x=mb.reduce_sum(x=y, axes=[0]), y=mb.squeeze(x=limit))

        def body(count: Any, y: Any) -> Any:
            return mb.add(x=count, y=np.int32(1)), mb.add(x=y, y=outside)

        return mb.while_loop(_cond=below, _body=body, loop_vars=(np.int32(0), x))

    for mode in ("fp32", "device"):
        runner = opened(tmp_path / f"{mode}.mlpackage", {"x": spec(2), "limit": spec(1)}, build, mode)
        for limit in (0, 3.5, 100):
            x = np.array([1, 0.5], np.float32)
            rounds, y = 0, x
            while y.sum() < limit:
                rounds, y = rounds + 1, y + 2 * x
            count, got = runner({"x": x, "limit": np.array([limit], np.float32)}).values()
            assert (count.item(), got.tolist()) == (rounds, y.tolist())


def test_a_loop_within_a_branch_whose_result_grows(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        def grown() -> Any:
            return mb.while_loop(
                _cond=lambda i, y: mb.less(x=i, y=np.int32(3)),
                _body=lambda i, y: (mb.add(x=i, y=np.int32(1)), mb.concat(values=[y, x], axis=0)),
                loop_vars=(np.int32(0), mb.relu(x=x)),
            )[1]

        positive = mb.greater(x=mb.reduce_max(x=x, axes=[0]), y=np.float32(0))
        return mb.cond(pred=positive, _true_fn=grown, _false_fn=lambda: mb.tile(x=x, reps=mb.shape(x=x)))

    runner = opened(tmp_path / "p.mlpackage", {"x": spec(2)}, build)
    got = [next(iter(runner({"x": np.array(x, np.float32)}).values())).tolist() for x in ([1, -2], [-1, -2])]
    assert got == [[1, 0, 1, -2, 1, -2, 1, -2], [-1, -2, -1, -2]]


def test_a_state_within_a_loop(tmp_path: Path) -> None:
    def build(x: Any, total: Any) -> Any:
        def body(i: Any) -> Any:
            mb.coreml_update_state(state=total, value=mb.add(x=mb.read_state(input=total), y=x))
            return mb.add(x=i, y=np.int32(1))

        mb.while_loop(_cond=lambda i: mb.less(x=i, y=np.int32(3)), _body=body, loop_vars=(np.int32(0),))
        return mb.identity(x=mb.read_state(input=total), name="y")

    inputs = {"x": spec(2, dtype=types.fp16), "total": mb.StateTensorSpec((2,), dtype=types.fp16)}
    runner = opened(tmp_path / "p.mlpackage", inputs, build)
    state = runner.make_state()
    x = {"x": np.array([1, 2], np.float16)}
    assert [runner(x, state)["y"].tolist() for _ in range(2)] == [[3, 6], [6, 12]]


@pytest.mark.parametrize("mode", ["fp32", "device"])
def test_where_nan_begins_in_a_loop(tmp_path: Path, mode: Any) -> None:
    """The third round divides 0 by 0; what the fourth makes of it is no beginning."""

    def build(x: Any) -> Any:
        def body(i: Any, y: Any) -> Any:
            gone = mb.sub(x=i, y=np.float32(2))
            return mb.add(x=i, y=np.float32(1)), mb.real_div(x=mb.mul(x=y, y=gone), y=gone, name="ratio")

        return mb.while_loop(
            _cond=lambda i, y: mb.less(x=mb.squeeze(x=i), y=np.float32(4)),
            _body=body,
            loop_vars=(mb.mul(x=x, y=np.float32(0)), x),
        )[1]

    runner = opened(tmp_path / "p.mlpackage", {"x": spec(1)}, build, mode)
    trace = runner.trace()
    runner({"x": np.ones(1, np.float32)})
    assert [(b.what, b.op, b.count) for b in trace.beginnings] == [("NaN", "real_div", 1)]


def test_a_failure_within_a_block_is_named(tmp_path: Path) -> None:
    def build(x: Any, i: Any) -> Any:
        return mb.cond(
            pred=mb.greater(x=mb.reduce_sum(x=x, axes=[0]), y=np.float32(0)),
            _true_fn=lambda: mb.gather(x=x, indices=i, axis=0, name="picked"),
            _false_fn=lambda: mb.identity(x=x),
        )

    runner = opened(tmp_path / "p.mlpackage", {"x": spec(2), "i": spec(2, dtype=types.int32)}, build)
    given = {"i": np.array([0, 5]), "x": np.ones(2, np.float32)}
    with pytest.raises(OpError, match=r"op gather \(name 'picked', output picked, number \d+ .*out of range"):
        runner(given)
    assert runner(given | {"x": -given["x"]})


class Gru(nn.Module):
    """PyTorch's GRU without the checks of sizes, whose trace coremltools cannot read."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, last = torch.gru(x, h, list(self.layer.parameters()), True, 1, 0.0, False, False, True)
        return y, last


def test_pytorch_s_gru_is_a_loop_to_coremltools(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = Gru().eval()
    path = tmp_path / "p.mlpackage"
    ct.convert(
        torch.jit.trace(network, (torch.zeros(1, 5, 3), torch.zeros(1, 1, 4))),
        inputs=[ct.TensorType("x", ct.Shape((1, ct.RangeDim(1, 9, default=5), 3))), ct.TensorType("h", (1, 1, 4))],
        outputs=[ct.TensorType("y"), ct.TensorType("last")],
        minimum_deployment_target=TARGETS[17],
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    ).save(str(path))
    runner = open_package(path)
    assert "while_loop" in runner.ops
    for length in (1, 5, 9):
        x, h = torch.randn(1, length, 3), torch.randn(1, 1, 4)
        got = runner({"x": x.numpy(), "h": h.numpy()})
        with torch.no_grad():
            y, last = network.layer(x, h)
        assert relative(got["y"], y.numpy()) <= 1e-6
        assert relative(got["last"], last.numpy()) <= 1e-6
