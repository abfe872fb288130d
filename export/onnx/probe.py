"""Inner values of an ONNX file: as its runtime computes them, and in single precision."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Arrays
from snapgen_deploy.export.onnx import file as onnx_file
from snapgen_deploy.export.onnx.qdq import DEQUANTISE, QUANTISE, after_quantisers, in_floats
from snapgen_deploy.export.probe import GraphLayer, noise
from snapgen_deploy.system.quiet import first_line, quiet

# Operators with quantisation inside: such a file has no single-precision values with the same weights.
CLOSED = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "MatMulNBits")
RunGraph = Callable[[Path, Mapping[str, np.ndarray]], Arrays]  # a model's file and its inputs -> all its outputs


@dataclass
class OnnxProbe:
    """An ONNX file. `run` is its own runtime; single precision is onnxruntime's CPU provider without optimisations."""

    graph: Path
    inputs: Arrays
    run: RunGraph
    layers: Sequence[GraphLayer] = field(init=False)
    warnings: Sequence[str] = ()

    def __post_init__(self) -> None:
        import onnx

        with quiet():
            model = onnx_file.load(self.graph)
            onnx_file.infer_shapes(model)
        self._model, self._plain = model, in_single(in_floats(model))
        floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
        values = [*model.graph.value_info, *model.graph.output, *model.graph.input]
        floating = {v.name for v in values if v.type.tensor_type.elem_type in floats}
        self._stored_as = after_quantisers(model)
        plain = [n for n in self._plain.graph.node if n.op_type not in (QUANTISE, DEQUANTISE, "Identity")]
        known = {*(n.output[0] for n in plain), *self.inputs}
        self.layers = [
            GraphLayer(n.name, n.op_type, n.output[0], tuple(i for i in n.input if i in known and i in floating))
            for n in plain
            if n.output[0] in floating
        ]

    def exact(self, names: Sequence[str]) -> Arrays:
        """These values in single precision."""
        given = {name: value for name, value in self.inputs.items() if name in names}
        wanted = [name for name in names if name not in given]
        found = self._with_outputs(self._plain, {name: name for name in wanted}, _run_exactly)
        return {**found, **given}

    def saved(self, names: Sequence[str]) -> Arrays:
        """These values as the file's own runtime computes them, after their quantiser if there is one."""
        return self._with_outputs(self._model, {name: self._stored_as.get(name, name) for name in names}, self.run)

    def _with_outputs(self, model: Any, names: Mapping[str, str], run: RunGraph) -> Arrays:
        import onnx

        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        there = {o.name for o in copy.graph.output}
        for inner in dict.fromkeys(names.values()):
            if inner not in there:
                copy.graph.output.append(onnx.ValueInfoProto(name=inner))  # the runtime knows its type
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.graph.name
            onnx.save(
                copy, str(path), save_as_external_data=onnx_file.held_bytes(copy) > onnx_file.BIG, location=f"{path.name}.data"
            )
            found = run(path, self.inputs)
        return {name: found[inner] for name, inner in names.items()}


def in_single(model: Any) -> Any:
    """Change half precision to single precision in place; weights keep their rounded values."""
    from onnx import TensorProto, numpy_helper

    half, single, graph = TensorProto.FLOAT16, TensorProto.FLOAT, model.graph
    for tensor in graph.initializer:
        if tensor.data_type == half:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == half:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32)))
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == half:
                attribute.i = single
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = single
    return model


def run_on_cpu(path: Path, inputs: Mapping[str, np.ndarray], *, exactly: bool = False) -> Arrays:
    """All outputs of a model by onnxruntime's CPU provider; `exactly`: one operator after the other, as written."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_DISABLE_ALL if exactly else level.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _run_exactly(path: Path, inputs: Mapping[str, np.ndarray]) -> Arrays:
    return run_on_cpu(path, {n: x.astype(np.float32) if x.dtype == np.float16 else x for n, x in inputs.items()}, exactly=True)


def operators(path: Path) -> set[str]:
    """Types of the graph's nodes.

    Raises:
        BadInput: if the file cannot be read.
    """
    import onnx

    try:
        return {n.op_type for n in onnx.load(str(path), load_external_data=False).graph.node}
    except Exception as error:  # protobuf's, or the system's
        raise BadInput(f"{path} cannot be read as an ONNX model: {first_line(error)}") from None


def noise_inputs(path: Path) -> Arrays:
    """Made-up inputs of a graph."""
    import onnx

    found = {}
    for value in onnx.load(str(path), load_external_data=False).graph.input:
        kind = value.type.tensor_type
        found[value.name] = tuple(d.dim_value for d in kind.shape.dim), kind.elem_type == onnx.TensorProto.INT32
    return noise(found)
