"""Attention and rotary positions in onnxruntime's own operators: what is replaced, what is not, and that nothing changes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from snapgen_deploy.check.gates import relative_error
from snapgen_deploy.export.base import Component, Port
from snapgen_deploy.export.onnx import attention_times
from snapgen_deploy.export.onnx.attention_times import (
    AttentionShape,
    AttentionTime,
    expected_ratio,
    operator_wins,
    stored_times,
)
from snapgen_deploy.export.onnx.target import Onnx
from snapgen_deploy.sparse.fold import rope_constants
from snapgen_deploy.sparse.token_layers import rotate_tokens

ROWS, COLS, DIM = 3, 5, 8


class Rotations(nn.Module):
    """Two rotations by one table, and sums that look like one: other halves, another sign, a table that is no rotation."""

    c: Tensor
    s: Tensor
    other_c: Tensor
    other_s: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, theta in (("", 100.0), ("other_", 50.0)):
            for table, values in zip("cs", rope_constants(ROWS, COLS, DIM, theta), strict=True):
                self.register_buffer(f"{name}{table}", values)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        """(2, N, d) and (1, N, d) -> five of the same sizes."""
        straight = k * self.other_c + k * self.other_s
        unturned = torch.cat([k.narrow(2, 0, DIM // 2), k.narrow(2, DIM // 2, DIM // 2)], 2)
        swapped = torch.cat([k.narrow(2, DIM // 2, DIM // 2), k.narrow(2, 0, DIM // 2)], 2)
        other = k * (self.other_c + 1) + swapped * self.other_c
        return rotate_tokens(2 * q, (self.c, self.s)), rotate_tokens(k, (self.c, self.s)), straight, unturned, other


def rotations() -> Component:
    shapes = {"q": (2, ROWS * COLS, DIM), "k": (1, ROWS * COLS, DIM)}
    ports = tuple(Port(name, shape, "float32", "") for name, shape in shapes.items())
    names = ("turned_q", "turned_k", "straight", "unturned", "other")
    outputs = tuple(Port(n, shapes["q"] if n == "turned_q" else shapes["k"], "float32", "") for n in names)
    return Component("student", Rotations(), ports, outputs, tuple(torch.randn(s) for s in shapes.values()), "")


@pytest.mark.parametrize("attention", ["measured", "spelled"])
def test_only_rotations_become_the_operator(tmp_path, attention):
    component = rotations()
    made = Onnx().export(component, "cpu", "fp32", tmp_path, {"attention": attention})
    model = onnx.load(made.path)
    expected = 2 if attention == "measured" else 0
    assert Counter(node.op_type for node in model.graph.node)["RotaryEmbedding"] == expected
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read  # the tables that were replaced are gone
    assert [o.domain for o in model.opset_import if o.domain] == (["com.microsoft"] if expected else [])
    feed = {port.name: value.numpy() for port, value in zip(component.inputs, component.example, strict=True)}
    got = Onnx().open(made.path, threads=1)(feed)
    for port, value in zip(component.outputs, component.module(*component.example), strict=True):
        assert relative_error(got[port.name], value.numpy()) < 1e-6


def test_a_shape_is_decided_by_measured_ones_near_it(monkeypatch):
    times = [
        AttentionTime(AttentionShape(8, 4096, 1024, 64), 10.0, 6.0),
        AttentionTime(AttentionShape(8, 4096, 256, 64), 2.0, 2.4),
        AttentionTime(AttentionShape(8, 64, 16, 64), 1.0, 1.5),
    ]
    monkeypatch.setattr(attention_times, "stored_times", lambda: times)
    assert operator_wins(AttentionShape(8, 4096, 768, 64))
    assert not operator_wins(AttentionShape(8, 64, 32, 64))
    between = expected_ratio(AttentionShape(8, 4096, 512, 64))  # as far from both of the first, and far from the third
    assert between == pytest.approx((0.6 * 1.2) ** 0.5, rel=1e-3)


def test_the_stored_table_is_of_every_kind_of_shape():
    shapes = [time.shape for time in stored_times()]
    assert len(set(shapes)) == len(shapes) > 150
    assert {"wins", "loses"} == {"wins" if operator_wins(shape) else "loses" for shape in shapes}
    assert all(np.isfinite(time.ratio) and time.ratio > 0 for time in stored_times())
