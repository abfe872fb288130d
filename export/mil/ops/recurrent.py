"""Recurrent layers (coremltools: recurrent.py of iOS15, iOS17 and iOS18): x (s, b, I), states (b, H).

In direction `reverse` the last step is taken first, and results stand in the order in which they were made; in a
bidirectional layer each result of the backward half stands at its own step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snapgen_deploy.export.mil.ops.registry import op

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "hard_sigmoid": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "linear": lambda x: x,
    "relu": torch.relu,
    "scaled_tanh": torch.tanh,  # Core ML's default factors are 1
    "sigmoid": torch.sigmoid,
    "sigmoid_hard": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "tanh": torch.tanh,
}


def _activation(name: str) -> Activation:
    if name.lower() not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown; expected {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name.lower()]


def _projected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What every step's input adds to the gates, for all steps at once: (s, b, gates * H)."""
    return torch.nn.functional.linear(x, weight, bias)


def _ordered(x: Tensor, direction: str) -> Tensor:
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction {direction!r} is unknown; expected forward or reverse")
    return x.flip(0) if direction == "reverse" else x


def _sequence(results: list[Tensor], last: Tensor, every: bool) -> Tensor:
    """All results (s, b, H), or the last (1, b, H), which is the initial state where there was no step."""
    if not every:
        return last[None]
    return torch.stack(results) if results else last.new_zeros(0, *last.shape)


@op("rnn")
def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    *,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """h = activation(W_ih x + W_hh h + b)."""
    act, h, results = _activation(activation), initial_h, []
    for step in _projected(_ordered(x, direction), weight_ih, bias):
        h = act(step + h @ weight_hh.T)
        results.append(h)
    return _sequence(results, h, output_sequence), h


@op("gru")
def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    *,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """h = (1 - z) o + z h with gates in the order reset, output, update.

    The reset gate acts on h before W_ho, as Core ML does whatever the formula in its documentation says (its own tests, which
    run there, compare so); with `reset_after` on W_ho h + b_o, as PyTorch's.
    """
    inner, act, h, results = _activation(recurrent_activation), _activation(activation), initial_h, []
    size = initial_h.shape[-1]
    hidden_bias = torch.zeros(3 * size) if bias is None else bias
    for step in _projected(_ordered(x, direction), weight_ih, input_bias):
        r_in, o_in, z_in = step.split(size, -1)
        r_w, o_w, z_w = weight_hh.split(size)
        r_b, o_b, z_b = hidden_bias.split(size)
        r = inner(r_in + h @ r_w.T + r_b)
        z = inner(z_in + h @ z_w.T + z_b)
        o = act(o_in + (r * (h @ o_w.T + o_b) if reset_after else (r * h) @ o_w.T + o_b))
        h = (1 - z) * o + z * h
        results.append(h)
    return _sequence(results, h, output_sequence), h


@op("lstm")
def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    *,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """c = f c + i z, h = o activation(c) with gates in the order input, forget, output, cell; c is kept within `clip`.

    Bidirectional: states and results hold the forward half, then the backward half, along the last axis.
    """
    acts = tuple(_activation(name) for name in (recurrent_activation, cell_activation, activation))
    limit = float("inf") if clip is None else clip

    def run(steps: Tensor, h: Tensor, c: Tensor, hidden: Tensor, peep: Tensor | None) -> tuple[list[Tensor], Tensor, Tensor]:
        results = []
        for step in steps:
            h, c = _lstm_step(step + h @ hidden.T, c, peep, acts, limit)
            results.append(h)
        return results, h, c

    if direction != "bidirectional":
        steps = _projected(_ordered(x, direction), weight_ih, bias)
        results, h, c = run(steps, initial_h, initial_c, weight_hh, peephole)
        return _sequence(results, h, output_sequence), h, c
    if weight_ih_back is None or weight_hh_back is None:
        raise ValueError("a bidirectional layer needs weight_ih_back and weight_hh_back")
    (h0, h1), (c0, c1) = initial_h.chunk(2, -1), initial_c.chunk(2, -1)
    ahead, h, c = run(_projected(x, weight_ih, bias), h0, c0, weight_hh, peephole)
    back, h_back, c_back = run(_projected(x.flip(0), weight_ih_back, bias_back), h1, c1, weight_hh_back, peephole_back)
    halves = _sequence(ahead, h, output_sequence), _sequence(back[::-1], h_back, output_sequence)
    return torch.cat(halves, -1), torch.cat([h, h_back], -1), torch.cat([c, c_back], -1)


def _lstm_step(
    gates: Tensor, c: Tensor, peephole: Tensor | None, acts: tuple[Activation, ...], limit: float
) -> tuple[Tensor, Tensor]:
    """One step from the sums of its four gates (b, 4 H): the new h and c. The output gate peeps at the new c."""
    inner, cell, outer = acts
    i, f, o, z = gates.chunk(4, -1)
    if peephole is not None:
        at_i, at_f, at_o = peephole.chunk(3)
        i, f = i + at_i * c, f + at_f * c
    c = (inner(f) * c + inner(i) * cell(z)).clamp(-limit, limit)
    if peephole is not None:
        o = o + at_o * c
    return inner(o) * outer(c), c
