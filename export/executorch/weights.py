"""Reads one XNNPACK delegate of a saved program with the runtime's schema: nodes, and how its weights are stored."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snapgen_deploy.export.base import Weight

BARE_INFINITY = re.compile(r"(: -?)inf\b")  # how flatc writes the open side of a clamp; JSON readers want Infinity
# Names of dtypes in ExecuTorch's and XNNPACK's schemas -> numpy's; other names are not changed.
NUMPY_DTYPES = {
    "float": "float32", "half": "float16", "int": "int32", "long": "int64", "fp32": "float32", "fp16": "float16",
    "qcint8": "int8", "qint8": "int8", "qcint4": "int4", "qbint4": "int4", "qcint32": "int32", "qint32": "int32",
}  # fmt: skip
BITS = {"float32": 32, "float16": 16, "int8": 8, "int4": 4, "int32": 32, "int64": 64}
_LAYERS = ("XNNFullyConnected", "XNNConv2d", "XNNDepthwiseConv2d", "XNNConvTranspose2d")
SCALE_BITS = {"PerChannelQuant": 32, "PerChannelGroupQuant": 16}  # XNNPACK keeps group scales in bfloat16


@dataclasses.dataclass(frozen=True)
class Delegate:
    """Contents of one delegate."""

    nodes: Counter[str]
    weights: dict[str, Weight]
    floats: dict[str, str]  # weights of layers that are floats -> why, where a quantiser was to take them


def read(payload: bytes, index: int) -> Delegate:
    """The delegate in `payload`; `index` names constants that have no key of their own."""
    graph = _graph(payload)
    weights: dict[str, Weight] = {}
    names: dict[int, str] = {}
    for value in graph["xvalues"]:
        union = value["xvalue_union"]
        tensor = union.get("tensor_value", union)
        if slot := tensor["constant_buffer_idx"]:
            name = graph["constant_data"][slot].get("named_key") or f"xnnpack.{index}.{slot}"
            weights[name] = _weight(tensor, union)
            names[tensor["id_out"]] = name
    nodes = Counter(node["xnode_union_type"] for node in graph["xnodes"])
    return Delegate(nodes, weights, _floats(graph["xnodes"], names, weights))


def _graph(payload: bytes) -> Any:
    from snapgen_deploy.export.executorch.reading import XNNPACK_SCHEMA, XNNHeader

    header = XNNHeader.from_bytes(payload[: XNNHeader.EXPECTED_LENGTH])
    end = header.flatbuffer_offset + header.flatbuffer_size
    return decompiled(XNNPACK_SCHEMA, payload[header.flatbuffer_offset : end])


def decompiled(schema_text: bytes, data: bytes) -> Any:
    """A flatbuffer as plain data, by its schema, with ExecuTorch's own `flatc`."""
    from snapgen_deploy.export.executorch.reading import flatc_decompile

    with tempfile.TemporaryDirectory() as scratch:
        schema, binary = Path(scratch) / "schema.fbs", Path(scratch) / "graph.bin"
        schema.write_bytes(schema_text)
        binary.write_bytes(data)
        flatc_decompile(scratch, str(schema), str(binary), ["--raw-binary", "--defaults-json"])
        return json.loads(BARE_INFINITY.sub(r"\1Infinity", (Path(scratch) / "graph.json").read_text(encoding="utf-8")))


def _weight(tensor: Mapping[str, Any], union: Mapping[str, Any]) -> Weight:
    kind = tensor["datatype"].removeprefix("xnn_datatype_")
    kind, shape = NUMPY_DTYPES.get(kind, kind), tuple(tensor["dims"])
    values, parameters = math.prod(shape), union.get("quant_params") or {}
    bits = values * BITS.get(kind, 32) + parameters.get("num_scales", 0) * SCALE_BITS.get(union.get("quant_params_type", ""), 0)
    if kind in ("int8", "int4"):
        group = parameters.get("group_size")
        kind += f" per {group} values" if group else " per channel" if parameters.get("num_scales") else ""
    return Weight(kind, values, bits, shape)


def _floats(nodes: Any, names: Mapping[int, str], weights: Mapping[str, Weight]) -> dict[str, str]:
    found = {}
    for node in nodes:
        name = names.get(node["xnode_union"].get("filter_id", -1))
        if node["xnode_union_type"] in _LAYERS and name is not None and weights[name].kind.startswith("float"):
            found[name] = f"{weights[name].kind}: {_why(node['xnode_union_type'], weights[name])}"
    return found


def _why(layer: str, weight: Weight) -> str:
    if layer != "XNNFullyConnected":
        return f"the quantiser takes no {layer.removeprefix('XNN')}"
    return f"{'x'.join(map(str, weight.shape))} does not divide into groups"
