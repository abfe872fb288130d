"""How the weights of a saved ONNX model are stored, read back from its initializers and the nodes that use them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from snapgen_deploy.export.base import Weight, element_bits, packed
from snapgen_deploy.export.onnx.palettes import INDICES, TABLE

NAMES = {"float": "float32", "double": "float64"}  # of ONNX's types, where they differ from numpy's
_LAYERS = {"MatMul": 1, "Gemm": 1, "Conv": 1, "ConvTranspose": 1, "Gather": 0}  # operator -> input that is the weight
AUXILIARY = ("_scale", "_zero_point")  # endings of the tensors that onnxruntime's quantisers add to a weight
_QUANTISED = "_quantized"


def stored(model: Any) -> dict[str, Weight]:
    """Initializer -> how it is stored; scales and zero points count towards the bits of the weight that they belong to."""
    plain = {w.name: _plain(w) for w in model.graph.initializer}
    found: dict[str, Weight] = {}
    used: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            parts = [n for n in node.input[1:] if n in plain]
            given = {a.name: a.i for a in node.attribute}
            kind, values = f"int{given['bits']} per {given['block_size']} values", given["K"] * given["N"]
            found[node.input[1]] = Weight(kind, values, sum(plain[n].bits for n in parts), (given["K"], given["N"]))
            used.update(parts)
    for indices, table in _palettes(plain):
        name, own = indices.removesuffix(INDICES), plain[indices]
        bits = own.bits + plain[table].bits
        found[name] = Weight(f"palette{element_bits(own.kind)}", own.values, bits, own.shape)
        used.update((indices, table))
    for name in [n for n in plain if n.endswith(_QUANTISED)]:
        base = name.removesuffix(_QUANTISED)
        parts = [name, *(base + end for end in AUXILIARY if base + end in plain)]
        scale = plain.get(f"{base}_scale")
        per = " per channel" if scale is not None and scale.values > 1 else ""
        found[name] = Weight(
            f"{plain[name].kind}{per}", plain[name].values, sum(plain[n].bits for n in parts), plain[name].shape
        )
        used.update(parts)
    for name, weight in plain.items():
        if name not in used:  # scales of activations are constants of no weight: they count as bits, not as values
            found[name] = Weight(weight.kind, 0, weight.bits) if name.endswith(AUXILIARY) else weight
    return dict(sorted(found.items()))


def skipped(model: Any, weights: Mapping[str, Weight]) -> dict[str, str]:
    """Layers of a quantised model whose weight is a float constant, and why; none in a model that is fp16 throughout."""
    if any(w.kind == "float16" for w in weights.values()):
        return {}
    found = {}
    for node in model.graph.node:
        place = _LAYERS.get(node.op_type)
        if place is None or place >= len(node.input):
            continue
        weight = weights.get(node.input[place])
        if weight is not None and not packed(weight.kind) and len(weight.shape) > 1:
            found[node.input[place]] = f"{weight.kind}: the quantiser does not take {node.op_type} at this precision"
    return dict(sorted(found.items()))


def _palettes(names: Iterable[str]) -> list[tuple[str, str]]:
    """Indices and table of every weight with a palette."""
    there = set(names)
    pairs = [(n, n.removesuffix(INDICES) + TABLE) for n in there if n.endswith(INDICES)]
    return [pair for pair in sorted(pairs) if pair[1] in there]


def _plain(tensor: Any) -> Weight:
    import onnx

    kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    kind = NAMES.get(kind, kind)
    values = math.prod(tensor.dims)
    return Weight(kind, values, values * element_bits(kind), tuple(tensor.dims))
