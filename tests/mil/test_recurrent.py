"""Recurrent layers: PyTorch is the oracle, and for what it has not, formulas as in coremltools' own tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor, nn

from snapgen_deploy.export.mil import OpError, open_package
from tests.mil.mil_harness import TARGETS, Arrays, Function, Program, ct, mb, relative, save, types

S, B, N, H = 5, 2, 3, 4
X = np.random.default_rng(4).normal(size=(S, B, N)).astype(np.float32)


def run(path: Path, inputs: Arrays, build: Any, ios: int = 17, mode: Any = "fp32") -> list[np.ndarray]:
    with Function(
        {k: mb.TensorSpec(shape=v.shape, dtype=types.fp32) for k, v in inputs.items()}, opset_version=TARGETS[ios]
    ) as f:
        f.set_outputs([mb.identity(x=var, name=f"out{i}") for i, var in enumerate(build(**f.inputs))])
    program = Program()
    program.add_function("main", f)
    return list(open_package(save(program, path, ios), mode=mode)(inputs).values())


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def parts(layer: nn.Module, suffix: str, order: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A torch layer's weights with their gates in another order; both biases as one."""
    held = {k: v.detach().numpy() for k, v in layer.state_dict().items() if k.endswith(f"_l0{suffix}")}
    gates = {k: np.concatenate([np.split(v, len(order))[g] for g in order]) for k, v in held.items()}
    bias = gates[f"bias_ih_l0{suffix}"] + gates[f"bias_hh_l0{suffix}"]
    return {"weight_ih": gates[f"weight_ih_l0{suffix}"], "weight_hh": gates[f"weight_hh_l0{suffix}"], "bias": bias}


IFOZ = (0, 1, 3, 2)  # torch has input, forget, cell, output


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_lstm(tmp_path: Path, direction: str, every: bool) -> None:
    torch.manual_seed(1)
    layer = nn.LSTM(N, H)
    given = {"x": X, "initial_h": random(B, H), "initial_c": random(B, H) / 2}
    more = {"direction": direction, "output_sequence": every}
    got = run(tmp_path / "p.mlpackage", given, lambda **v: mb.lstm(**v, **parts(layer, "", IFOZ), **more))
    x = X[::-1].copy() if direction == "reverse" else X
    with torch.no_grad():
        y, (h, c) = layer(torch.tensor(x), tuple(torch.tensor(given[k])[None] for k in ("initial_h", "initial_c")))
    for a, b in zip(got, (y if every else y[-1:], h[0], c[0]), strict=True):
        assert a.shape == b.shape
        assert relative(a, b.numpy()) <= 1e-6


@pytest.mark.parametrize("every", [True, False])
def test_bidirectional_lstm(tmp_path: Path, every: bool) -> None:
    torch.manual_seed(1)
    layer = nn.LSTM(N, H, bidirectional=True)
    back = {f"{k}_back": v for k, v in parts(layer, "_reverse", IFOZ).items()}
    h, c = random(2, B, H), random(2, B, H) / 2
    given = {"x": X, "initial_h": np.concatenate([*h], -1), "initial_c": np.concatenate([*c], -1)}
    more = {"direction": "bidirectional", "output_sequence": every}
    got = run(tmp_path / "p.mlpackage", given, lambda **v: mb.lstm(**v, **parts(layer, "", IFOZ), **back, **more))
    with torch.no_grad():
        y, ends = layer(torch.tensor(X), (torch.tensor(h), torch.tensor(c)))
    whole = y if every else torch.cat([y[-1:, :, :H], y[:1, :, H:]], -1)
    for a, b in zip(got, (whole, *(torch.cat([*e], -1) for e in ends)), strict=True):
        assert relative(a, b.numpy()) <= 1e-6


def test_lstm_with_peepholes_clip_and_other_activations(tmp_path: Path) -> None:
    weights = {"weight_ih": random(4 * H, N), "weight_hh": random(4 * H, H), "bias": random(4 * H), "peephole": random(3 * H)}
    acts = {"recurrent_activation": "hard_sigmoid", "cell_activation": "relu", "activation": "scaled_tanh"}
    given = {"x": X, "initial_h": random(B, H), "initial_c": random(B, H)}
    got = run(
        tmp_path / "p.mlpackage", given, lambda **v: mb.lstm(**v, **weights, **acts, clip=np.float32(0.4), output_sequence=True)
    )
    h, c, wanted = given["initial_h"], given["initial_c"], []
    p_i, p_f, p_o = np.split(weights["peephole"], 3)

    def inner(x: np.ndarray) -> np.ndarray:
        return np.clip(0.2 * x + 0.5, 0, 1)

    for x in X:
        i, f, o, z = np.split(x @ weights["weight_ih"].T + h @ weights["weight_hh"].T + weights["bias"], 4, -1)
        c = np.clip(inner(f + p_f * c) * c + inner(i + p_i * c) * np.maximum(z, 0), -0.4, 0.4)
        h = inner(o + p_o * c) * np.tanh(c)
        wanted.append(h)
    for a, b in zip(got, (np.stack(wanted), h, c), strict=True):
        assert relative(a, b) <= 1e-6


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("after", [False, True])
def test_gru(tmp_path: Path, direction: str, after: bool) -> None:
    """Weights in the order reset, output, update. With `reset_after` it is PyTorch's."""
    w, u, b, b_in = random(3 * H, N), random(3 * H, H), random(3 * H), random(3 * H) / 2
    given = {"x": X, "initial_h": random(B, H)}
    arguments = {"weight_ih": w, "weight_hh": u, "bias": b, "direction": direction, "output_sequence": True}
    if after:
        arguments |= {"reset_after": True, "input_bias": b_in}
    got = run(tmp_path / "p.mlpackage", given, lambda **v: mb.gru(**v, **arguments), ios=18)
    (w_r, w_o, w_z), (u_r, u_o, u_z) = np.split(w, 3), np.split(u, 3)
    b_r, b_o, b_z = np.split(b, 3)
    x_steps, h, wanted = X[::-1] if direction == "reverse" else X, given["initial_h"], []
    if after:
        layer = nn.GRU(N, H)
        gates = {"weight_ih_l0": w, "weight_hh_l0": u, "bias_ih_l0": b_in, "bias_hh_l0": b}
        r_z_n = (0, 2, 1)
        layer.load_state_dict({k: torch.tensor(np.concatenate([np.split(v, 3)[g] for g in r_z_n])) for k, v in gates.items()})
        with torch.no_grad():
            y, _ = layer(torch.tensor(x_steps.copy()), torch.tensor(h)[None])
        assert relative(got[0], y.numpy()) <= 1e-6
        return
    for x in x_steps:
        r, z = (scipy.special.expit(x @ w_g.T + h @ u_g.T + b_g) for w_g, u_g, b_g in ((w_r, u_r, b_r), (w_z, u_z, b_z)))
        h = (1 - z) * np.tanh(x @ w_o.T + (r * h) @ u_o.T + b_o) + z * h
        wanted.append(h)
    assert relative(got[0], np.stack(wanted)) <= 1e-6
    assert relative(got[1], h) <= 1e-6


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_rnn(tmp_path: Path, direction: str) -> None:
    torch.manual_seed(1)
    layer = nn.RNN(N, H)
    given = {"x": X, "initial_h": random(B, H)}
    got = run(tmp_path / "p.mlpackage", given, lambda **v: mb.rnn(**v, **parts(layer, "", (0,)), direction=direction), ios=15)
    x = X[::-1].copy() if direction == "reverse" else X
    with torch.no_grad():
        y, h = layer(torch.tensor(x), torch.tensor(given["initial_h"])[None])
    assert relative(got[0], y[-1:].numpy()) <= 1e-6
    assert relative(got[1], h[0].numpy()) <= 1e-6


class Lstm(nn.Module):
    """PyTorch's LSTM of two layers without the checks of sizes, whose trace coremltools cannot read."""

    def __init__(self, bidirectional: bool) -> None:
        super().__init__()
        self.layer = nn.LSTM(N, H, num_layers=2, bidirectional=bidirectional, batch_first=True)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        both = self.layer.bidirectional
        y: Tensor = torch.lstm(x, (h, c), list(self.layer.parameters()), True, 2, 0.0, False, both, True)[0]
        return y


@pytest.mark.parametrize("bidirectional", [False, True])
def test_two_layers_from_pytorch_in_half_precision(tmp_path: Path, bidirectional: bool) -> None:
    torch.manual_seed(1)
    network = Lstm(bidirectional).eval()
    state = (4 if bidirectional else 2, 1, H)
    example = {"x": torch.randn(1, S, N), "h": torch.randn(*state), "c": torch.randn(*state)}
    path = tmp_path / "p.mlpackage"
    ct.convert(
        torch.jit.trace(network, tuple(example.values())),
        inputs=[ct.TensorType(name, x.shape) for name, x in example.items()],
        outputs=[ct.TensorType("y", dtype=np.float32)],
        minimum_deployment_target=TARGETS[17],
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    ).save(str(path))
    with torch.no_grad():
        wanted = network(*example.values()).numpy()
    for mode in ("fp32", "device"):
        runner = open_package(path, mode=mode)  # type: ignore[arg-type]
        assert runner.ops["lstm"] == 2
        assert relative(runner({name: x.numpy() for name, x in example.items()})["y"], wanted) <= 5e-3


def test_an_unknown_activation_is_refused(tmp_path: Path) -> None:
    given = {"x": X, "initial_h": random(B, H)}
    weights = {"weight_ih": random(H, N), "weight_hh": random(H, H), "activation": "elu"}
    with pytest.raises(OpError, match="op rnn .*activation 'elu' is unknown"):
        run(tmp_path / "p.mlpackage", given, lambda **v: mb.rnn(**v, **weights), ios=15)
