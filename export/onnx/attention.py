"""Attention as onnxruntime's own operator, in place of two products and a softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from snapgen_deploy.export.onnx.attention_times import AttentionShape
from snapgen_deploy.export.onnx.graph import ORT_DOMAIN, constant, drop_unused, initializer

if TYPE_CHECKING:
    import onnx_ir

ATTENTION = "MultiHeadAttention"
_ROWS = "attention_rows"  # a constant: the axis of keys (X, keys, d) that a slice is taken along
_SWAPPED = [0, 2, 1]  # the last two of three axes


def attention_operators(model: onnx_ir.Model, wins: Callable[[AttentionShape], bool]) -> int:
    """Replace, in place, softmax(q kT) v by one operator where nothing is added to the scores and it wins at that shape.

    All tensors are (X, rows, d): heads are folded into the first axis, so that each is an attention of one head and scale 1.
    The operator needs no memory for the scores. Attention with a mask keeps its form: the operator would want the mask for
    every row. Returns how many were replaced.
    """
    import onnx_ir as ir

    around = [nodes for node in model.graph if node.op_type == "Softmax" and (nodes := _around(node)) is not None]
    found = [nodes for nodes in around if (shape := _shape(nodes)) is not None and wins(shape)]
    for scores, softmax, mixed in found:
        query, swapped = scores.inputs
        value = mixed.inputs[1]
        assert query is not None
        assert swapped is not None
        before, key = _keys(model, swapped)
        settings = [ir.AttrInt64("num_heads", 1), ir.AttrFloat32("scale", 1.0)]
        made = ir.Node(ORT_DOMAIN, ATTENTION, [query, key, value], settings)
        old, new = mixed.outputs[0], made.outputs[0]
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_nodes_and_values(model.graph, mixed, [mixed, softmax, scores], [*before, made], [old], [new])
    if found:
        model.graph.opset_imports[ORT_DOMAIN] = 1
        drop_unused(model)
    return len(found)


def _shape(nodes: tuple[onnx_ir.Node, onnx_ir.Node, onnx_ir.Node]) -> AttentionShape | None:
    """Of the two products, where it is known."""
    scores, _, mixed = nodes
    sizes = [*(scores.outputs[0].shape or ()), *((mixed.outputs[0].shape or ())[-1:])]
    if len(sizes) != 4 or not all(isinstance(size, int) for size in sizes):
        return None
    heads, rows, keys, dim = (int(size) for size in sizes)
    return AttentionShape(heads, rows, keys, dim)


def _around(softmax: onnx_ir.Node) -> tuple[onnx_ir.Node, onnx_ir.Node, onnx_ir.Node] | None:
    """The product before a softmax over the last axis, the softmax, and the product after it, if nothing else reads between."""
    given, made = softmax.inputs[0], softmax.outputs[0]
    axis = softmax.attributes.get("axis")
    if given is None or len(made.shape or ()) != 3 or (axis is not None and axis.as_int() not in (-1, 2)):
        return None
    scores, readers = given.producer(), [use.node for use in made.uses()]
    if scores is None or scores.op_type != "MatMul" or len(given.uses()) != 1:
        return None
    if len(readers) != 1 or readers[0].op_type != "MatMul" or readers[0].inputs[0] is not made:
        return None
    return scores, softmax, readers[0]


def _keys(model: onnx_ir.Model, swapped: onnx_ir.Value) -> tuple[list[onnx_ir.Node], onnx_ir.Value]:
    """The keys (X, keys, d) of a product's second factor (X, d, keys), and the nodes that make them.

    Keys that were transposed before a part of them was taken are taken from what was transposed.
    """
    import onnx_ir as ir

    if (whole := _unswapped(swapped)) is not None:
        return [], whole
    part = swapped.producer()
    if part is not None and part.op_type == "Slice" and part.inputs[0] is not None and len(part.inputs) >= 4:
        axes, whole = constant(part.inputs[3]), _unswapped(part.inputs[0])
        if whole is not None and axes is not None and axes.tolist() in ([2], [-1]):
            made = ir.Node("", "Slice", [whole, *part.inputs[1:3], initializer(model, _ROWS, np.array([1])), *part.inputs[4:]])
            return [made], _described(made, swapped)
    back = ir.Node("", "Transpose", [swapped], [ir.AttrInt64s("perm", _SWAPPED)])
    return [back], _described(back, swapped)


def _described(node: onnx_ir.Node, swapped: onnx_ir.Value) -> onnx_ir.Value:
    """The output of a node, with the type of `swapped` and its shape transposed."""
    import onnx_ir as ir

    made, given = node.outputs[0], swapped.shape
    made.type, made.shape = swapped.type, None if given is None else ir.Shape([given[i] for i in _SWAPPED])
    return made


def _unswapped(value: onnx_ir.Value) -> onnx_ir.Value | None:
    """What a transposition of the last two axes was given."""
    node = value.producer()
    if node is None or node.op_type != "Transpose" or list(node.attributes["perm"].as_ints()) != _SWAPPED:
        return None
    return node.inputs[0]
