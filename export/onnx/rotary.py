"""Rotary positions as onnxruntime's own operator, in place of two slices, a concatenation, two products and a sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from snapgen_deploy.export.onnx.graph import ORT_DOMAIN, constant, drop_unused, initializer

if TYPE_CHECKING:
    import onnx_ir

ROTARY = "RotaryEmbedding"


def rotary_operators(model: onnx_ir.Model) -> int:
    """Replace, in place, x * [cos, cos] + [x2, x1] * [-sin, sin] by one operator; returns how many there were.

    x is (X, N, d) with halves x1 and x2 of its channels, the tables are constants (N, d).
    """
    import onnx_ir as ir

    caches: dict[tuple[bytes, bytes], tuple[ir.Value, ir.Value]] = {}
    count = 0
    for node in [n for n in model.graph if n.op_type == "Add"]:
        if (found := _around(node)) is None:
            continue
        x, cos, sin = found
        first = initializer(model, "rotary_first", np.zeros(1, np.int64))  # the position of the first row
        key = (cos.tobytes(), sin.tobytes())
        if key not in caches:
            number = len(caches)
            caches[key] = (initializer(model, f"rotary_cos_{number}", cos), initializer(model, f"rotary_sin_{number}", sin))
        made = ir.Node(ORT_DOMAIN, ROTARY, [x, first, *caches[key]])
        old, new = node.outputs[0], made.outputs[0]
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [made], [old], [new])
        count += 1
    if count:
        model.graph.opset_imports[ORT_DOMAIN] = 1
        drop_unused(model)
    return count


def _around(add: onnx_ir.Node) -> tuple[onnx_ir.Value, np.ndarray, np.ndarray] | None:
    """x, cos and sin (N, d/2) of a rotation that ends in this sum; None for any other sum."""
    products = [value.producer() if value is not None else None for value in add.inputs]
    for straight, turned in (products, products[::-1]):
        if straight is None or turned is None or straight.op_type != "Mul" or turned.op_type != "Mul":
            return None
        (x, c), (swapped, s) = _factors(straight), _factors(turned)
        if x is None or c is None or s is None or not _swaps(swapped, x):
            continue
        half = c.shape[1] // 2
        cos, sin = np.ascontiguousarray(c[:, :half]), np.ascontiguousarray(s[:, half:])
        if np.array_equal(cos, c[:, half:]) and np.array_equal(-sin, s[:, :half]):
            return x, cos, sin
    return None


def _factors(product: onnx_ir.Node) -> tuple[onnx_ir.Value | None, np.ndarray | None]:
    """The factor that is computed, and the constant one (N, d)."""
    for given, other in (product.inputs, product.inputs[::-1]):
        table = constant(other)
        if given is not None and table is not None and table.ndim == 2 and constant(given) is None:
            return given, table
    return None, None


def _swaps(value: onnx_ir.Value | None, x: onnx_ir.Value) -> bool:
    """Whether `value` is x (X, N, d) with the halves of its last axis exchanged."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Concat" or len(node.inputs) != 2 or x.shape is None or len(x.shape) != 3:
        return False
    if not isinstance(channels := x.shape[2], int):
        return False
    half = channels // 2
    return node.attributes["axis"].as_int() in (-1, 2) and [_sliced(v, x) for v in node.inputs] == [(half, 2 * half), (0, half)]


def _sliced(value: onnx_ir.Value | None, x: onnx_ir.Value) -> tuple[int, int] | None:
    """Where a slice of x along its last axis begins and ends."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Slice" or node.inputs[0] is not x:
        return None
    values = [constant(v) for v in node.inputs[1:]]  # starts, ends, axes, and steps, which may be left out
    start, end, axis, step = [*(None if v is None else v.tolist() for v in values), [1]][:4]
    if start is None or end is None or axis not in ([2], [-1]) or step != [1]:
        return None
    channels = None if x.shape is None else x.shape[2]
    return (start[0], min(end[0], channels)) if isinstance(channels, int) else None
