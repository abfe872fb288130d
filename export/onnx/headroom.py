"""The largest inner value of an fp16 graph. onnxruntime's CPU provider computes most of such a graph in fp32.

It has few fp16 operators and converts around the others, so a value that overflows on a phone's GPU or NPU does not overflow
here and must be measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy.export.base import Headroom
from snapgen_deploy.export.onnx import file as onnx_file
from snapgen_deploy.system.quiet import quiet

# Operators that only move values.
MOVES = frozenset(
    ["Concat", "Constant", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Tile"]
    + ["Transpose", "Unsqueeze"]
)
LARGEST = float(np.finfo(np.float16).max)
_TIGHTEST = 5  # operations that are named
PREFIX = "largest_value_of."


def measure(path: Path, calls: Iterable[Mapping[str, np.ndarray]], options: Any) -> Headroom | None:
    """The largest magnitude of an fp16 value over `calls`, each a set of inputs; None if the file has no such value.

    An overflow is infinity, or the larger fp32 value; a NaN is NaN. `options` are session options of onnxruntime, and are
    changed.
    """
    model, places = onnx_file.read(path)
    onnx_file.refer(model, places, path.name)
    values = _watch(model)
    if not values:
        return None
    session = _session(model, path.parent, options)
    names = list(values)
    found = np.array([session.run(names, dict(inputs)) for inputs in calls], np.float64)  # (calls, values)
    largest = found.max(0) if len(found) else np.full(len(names), np.nan)
    order = np.argsort(-np.nan_to_num(largest, nan=np.inf), kind="stable")[:_TIGHTEST]
    lines = tuple(f"{values[names[i]]}: largest {largest[i]:g} ({100 * largest[i] / LARGEST:.2f}% of 65504)" for i in order)
    return Headroom(float(largest[order[0]]), LARGEST, lines)


def _watch(model: Any) -> dict[str, str]:
    """Add an output, in place, with the largest magnitude of every computed fp16 value; returns output -> operator."""
    import onnx
    from onnx import TensorProto, helper

    with quiet():
        onnx_file.infer_shapes(model)
    graph = model.graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    types |= {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output, *graph.input)}
    watched: dict[str, str] = {}
    added: list[onnx.NodeProto] = []
    for node in graph.node:
        given = {types.get(name) for name in node.input}
        for value in filter(None, node.output):
            if not types.get(value) and TensorProto.FLOAT16 in given:  # onnxruntime's own operators are unknown to onnx
                types[value] = TensorProto.FLOAT16
            if types.get(value) != TensorProto.FLOAT16 or node.op_type in MOVES:
                continue
            wide, magnitude, out = f"{PREFIX}wide.{value}", f"{PREFIX}magnitude.{value}", f"{PREFIX}{value}"
            added += [
                helper.make_node("Cast", [value], [wide], to=TensorProto.FLOAT),
                helper.make_node("Abs", [wide], [magnitude]),
                helper.make_node("ReduceMax", [magnitude], [out], keepdims=0),
            ]
            watched[out] = f"{node.op_type} {value}"
    graph.node.extend(added)
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in watched)
    return watched


def _session(model: Any, folder: Path, options: Any) -> Any:
    import onnxruntime

    # in the default order all watched values would be held until the end
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
