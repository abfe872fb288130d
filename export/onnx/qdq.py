"""Graphs with `QuantizeLinear` and `DequantizeLinear` around their nodes."""

from __future__ import annotations

from typing import Any

QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


def in_floats(model: Any) -> Any:
    """A copy whose activations are not quantised: without pairs of `QuantizeLinear` and `DequantizeLinear`; weights stay."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    sources = {n.output[0]: n.input[0] for n in graph.node if n.op_type == QUANTISE}
    through = {n.output[0]: sources[n.input[0]] for n in graph.node if n.op_type == DEQUANTISE and n.input[0] in sources}
    outputs = {o.name for o in graph.output}
    kept = []
    for node in graph.node:
        if node.op_type == QUANTISE and node.output[0] in sources:
            continue
        if node.op_type == DEQUANTISE and node.output[0] in through:
            if node.output[0] in outputs:  # the graph's output must keep its name
                kept.append(onnx.helper.make_node("Identity", [through[node.output[0]]], [node.output[0]], node.name))
            continue
        node.input[:] = [_origin(name, through) for name in node.input]
        kept.append(node)
    for node in kept:
        if node.op_type == "Identity":
            node.input[:] = [_origin(name, through) for name in node.input]
    del graph.node[:]
    graph.node.extend(kept)
    return copy


def _origin(name: str, through: dict[str, str]) -> str:
    while name in through:
        name = through[name]
    return name


def after_quantisers(model: Any) -> dict[str, str]:
    """Value -> the same value after its pair of `QuantizeLinear` and `DequantizeLinear`, for values with one."""
    quantised = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == QUANTISE}
    back = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == DEQUANTISE}
    return {name: back[q] for name, q in quantised.items() if q in back}
