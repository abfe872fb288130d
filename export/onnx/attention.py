"""Attention as onnxruntime's own operator, in place of two products and a softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir

DOMAIN, OPERATOR = "com.microsoft", "MultiHeadAttention"
_SWAPPED = [0, 2, 1]  # the last two of three axes


def as_operators(model: onnx_ir.Model) -> int:
    """Replace, in place, softmax(q kT) v by one operator wherever nothing is added to the scores; returns how many there were.

    All tensors are (X, rows, d): heads are folded into the first axis, so that each is an attention of one head and scale 1.
    The operator needs no memory for the scores. Attention with a mask keeps its form: the operator would want the mask for
    every row.
    """
    import onnx_ir as ir

    found = [nodes for node in model.graph if node.op_type == "Softmax" and (nodes := _around(node)) is not None]
    for scores, softmax, mixed in found:
        query, swapped = scores.inputs
        value = mixed.inputs[1]
        assert query is not None
        assert swapped is not None
        before: list[ir.Node] = []
        if (key := _unswapped(swapped)) is None:
            back = ir.Node("", "Transpose", [swapped], [ir.AttrInt64s("perm", _SWAPPED)])
            before, key = [back], back.outputs[0]
            shape = swapped.shape
            key.shape = None if shape is None else ir.Shape([shape[i] for i in _SWAPPED])
            key.type = swapped.type
        settings = [ir.AttrInt64("num_heads", 1), ir.AttrFloat32("scale", 1.0)]
        made = ir.Node(DOMAIN, OPERATOR, [query, key, value], settings)
        old, new = mixed.outputs[0], made.outputs[0]
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_nodes_and_values(model.graph, mixed, [mixed, softmax, scores], [*before, made], [old], [new])
    if found:
        model.graph.opset_imports[DOMAIN] = 1
        _drop_unused(model)
    return len(found)


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


def _unswapped(value: onnx_ir.Value) -> onnx_ir.Value | None:
    """What a transposition of the last two axes was given."""
    node = value.producer()
    if node is None or node.op_type != "Transpose" or list(node.attributes["perm"].as_ints()) != _SWAPPED:
        return None
    return node.inputs[0]


def _drop_unused(model: onnx_ir.Model) -> None:
    """Remove transpositions that nothing reads any more."""
    kept = set(model.graph.outputs)
    for node in [n for n in model.graph if n.op_type == "Transpose" and not n.outputs[0].uses() and n.outputs[0] not in kept]:
        model.graph.remove(node, safe=True)
