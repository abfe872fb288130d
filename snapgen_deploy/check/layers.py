"""Which operation of a saved graph comes out wrong first: every layer against the same graph in single precision.

A probe says what the operations are, and gives the outputs of some of them as the saved file's runtime computes them and as
single precision does, with the file's own weights. `first_wrong` bisects, so that few outputs are held and compared at a time.
What a runtime fuses it may leave apart where an output inside is asked for: a wrong layer can hide, a right one stays right.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from snapgen_deploy.export.base import Arrays
from snapgen_deploy.export.onnx import file as onnx_file
from snapgen_deploy.export.qnn import graph as qnn_graph
from snapgen_deploy.export.shared.quiet import quiet

AT_ONCE = 24  # outputs of one round
SMALL = 0.01  # of the root mean square of an operation's inputs: what is smaller is told from zero no better than that


@dataclass(frozen=True)
class Layer:
    """One operation and what it makes; `inputs` are the values that other operations or the caller gave it."""

    name: str
    op: str
    output: str
    inputs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.op} '{self.name}' (output {self.output})"


class Probe(Protocol):
    """A saved graph whose inner values can be had."""

    layers: Sequence[Layer]  # in the order of the file
    warnings: Sequence[str]  # what the runtime had to say about the values so far

    def exact(self, names: Sequence[str]) -> Arrays:
        """These values in single precision."""
        ...

    def saved(self, names: Sequence[str]) -> Arrays:
        """These values as the file's own runtime computes them."""
        ...


@dataclass(frozen=True)
class Found:
    """What a comparison gave: the first wrong layer (None: none of those looked at) and the errors that were measured."""

    wrong: Layer | None
    errors: Mapping[str, float]  # output -> error, in the order of the file
    looked_at: int
    layers: int
    warnings: tuple[str, ...] = ()

    @property
    def worst(self) -> float:
        """The largest error that was measured."""
        return float(np.max(list(self.errors.values()))) if self.errors else math.nan

    def as_dict(self, limit: float) -> dict[str, Any]:
        """For `--json`, with the limit that errors were held to; an error that is not a number is null."""
        wrong = self.wrong
        return {
            "verdict": "passed" if wrong is None else "failed",
            "limit": limit,
            "first_wrong": None if wrong is None else {"name": wrong.name, "op": wrong.op, "output": wrong.output},
            "warnings": list(self.warnings),
            "looked_at": self.looked_at,
            "layers": self.layers,
            "errors": {name: float(f"{error:.3g}") if error == error else None for name, error in self.errors.items()},
        }


def first_wrong(probe: Probe, limit: float) -> Found:
    """Bisect over the layers for the first whose error exceeds `limit` though its inputs' errors do not; NaN exceeds."""
    layers, errors = probe.layers, dict[str, float]()
    place = {layer.output: i for i, layer in enumerate(layers)}

    def measure(indices: Sequence[int]) -> None:
        new = [i for i in dict.fromkeys(indices) if layers[i].output not in errors]
        for start in range(0, len(new), AT_ONCE):
            some = [layers[i] for i in new[start : start + AT_ONCE]]
            errors.update(_errors(probe, some))

    def bad(index: int) -> bool:
        return not errors[layers[index].output] <= limit

    low, high = -1, len(layers)  # all up to `low` are taken for right; `high` is wrong, or the end
    while high - low > 1:
        inner = _spread(low, high)
        measure(inner)
        wrong = next((i for i in inner if bad(i)), None)
        low = max((i for i in inner if wrong is None or i < wrong), default=low)
        if wrong is None and high == len(layers):
            break
        high = high if wrong is None else wrong
    while high < len(layers):  # a wrong value that the coarse rounds stepped over
        before = [place[name] for name in layers[high].inputs if name in place]
        measure(before)
        earlier = [i for i in before if bad(i)]
        if not earlier:
            break
        high = min(earlier)
    ordered = {layer.output: errors[layer.output] for layer in layers if layer.output in errors}
    first = layers[high] if high < len(layers) else None
    return Found(first, ordered, len(ordered), len(layers), tuple(probe.warnings))


def _spread(low: int, high: int) -> list[int]:
    """At most AT_ONCE indices between both, evenly, the last one among them."""
    count = min(AT_ONCE, high - low - 1)
    return sorted({low + round((high - low - 1) * (i + 1) / count) for i in range(count)})


def _errors(probe: Probe, layers: Sequence[Layer]) -> dict[str, float]:
    """Root mean square of the difference by that of the value, or a hundredth of its largest input's where that is more."""
    outputs = [layer.output for layer in layers]
    exact = probe.exact(list(dict.fromkeys([*outputs, *(name for layer in layers for name in layer.inputs)])))
    saved = probe.saved(outputs)
    found = {}
    for layer in layers:
        got, expected = saved[layer.output], exact[layer.output]
        scale = max([_rms(expected), *(SMALL * _rms(exact[name]) for name in layer.inputs)])
        same = got.shape == expected.shape
        found[layer.output] = _distance(got, expected) / max(scale, 1e-30) if same else math.nan
    return found


def _distance(got: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference; equal infinities, such as a mask's, differ by nothing, NaN by NaN."""
    with np.errstate(invalid="ignore"):
        difference = np.where(got == expected, 0.0, got.astype(np.float64) - expected)
    return float(np.sqrt(np.mean(np.square(difference)))) if difference.size else 0.0


def _rms(x: np.ndarray) -> float:
    """Root mean square of what is finite."""
    finite = x[np.isfinite(x)]
    return float(np.sqrt(np.mean(np.square(finite, dtype=np.float64)))) if finite.size else 0.0


RunGraph = Callable[[Path, Mapping[str, np.ndarray]], Arrays]  # a model's file and its inputs -> all its outputs


@dataclass
class OnnxProbe:
    """An ONNX file. `run` is its own runtime; single precision is onnxruntime's CPU provider without optimisations."""

    graph: Path
    inputs: Arrays
    run: RunGraph
    layers: Sequence[Layer] = field(init=False)
    warnings: Sequence[str] = ()

    def __post_init__(self) -> None:
        import onnx

        with quiet():
            model = onnx_file.load(self.graph)
            onnx_file.infer_shapes(model)
        self._model, self._plain = model, in_single(qnn_graph.in_floats(model))
        floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
        values = [*model.graph.value_info, *model.graph.output, *model.graph.input]
        floating = {v.name for v in values if v.type.tensor_type.elem_type in floats}
        self._stored_as = _after_quantisers(model)
        plain = [n for n in self._plain.graph.node if n.op_type not in ("QuantizeLinear", qnn_graph.DEQUANTISE, "Identity")]
        known = {*(n.output[0] for n in plain), *self.inputs}
        self.layers = [
            Layer(n.name, n.op_type, n.output[0], tuple(i for i in n.input if i in known and i in floating))
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
        """These values as the file's own runtime computes them, behind the quantiser of each where there is one."""
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
    """In place: what the graph stores or computes in half precision in single; its weights keep their rounded values."""
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


def _after_quantisers(model: Any) -> dict[str, str]:
    """Value -> the same value behind its pair of `QuantizeLinear` and `DequantizeLinear`, for those that have one."""
    quantised = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    back = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == qnn_graph.DEQUANTISE}
    return {name: back[q] for name, q in quantised.items() if q in back}


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


@dataclass
class CoreMLProbe:
    """A Core ML package in our executor: as the phone stores it, and in single precision."""

    package: Path
    inputs: Arrays
    entry: str = ""
    threads: int = 1
    layers: Sequence[Layer] = field(init=False)
    warnings: Sequence[str] = ()

    def __post_init__(self) -> None:
        from snapgen_deploy.export.mil.saved.reader import read_package

        package = read_package(self.package)
        operations = [o for o in package.functions[self.entry or package.default].operations if o.type != "const"]
        floating = {v.name for o in operations for v in o.outputs if v.type.dtype.floating and v.type.kind == "tensor"}
        known = floating | set(self.inputs)
        self.layers = [
            Layer(o.name, o.type, o.outputs[0].name, _named(o.inputs, known))
            for o in operations
            if o.outputs and o.outputs[0].name in floating
        ]

    def exact(self, names: Sequence[str]) -> Arrays:
        """These values in single precision, activations as they were before they were quantised."""
        return self._heard("fp32", names)

    def saved(self, names: Sequence[str]) -> Arrays:
        """These values rounded as the phone stores them."""
        return self._heard("device", names)

    def _heard(self, mode: Any, names: Sequence[str]) -> Arrays:
        from snapgen_deploy.export.mil.runner import open_package

        quantised = mode == "device"
        runner = open_package(self.package, mode=mode, function=self.entry or None, threads=self.threads, activations=quantised)
        wanted, found = set(names), Arrays()

        def hear(name: str, value: Any) -> None:
            if name in wanted:
                found[name] = value.float().numpy().copy()

        runner.watch(hear)
        trace = runner.trace()
        runner(self.inputs)
        self.warnings = (*map(str, trace.beginnings), *runner.warnings())
        return found


def _named(inputs: Mapping[str, tuple[Any, ...]], known: set[str]) -> tuple[str, ...]:
    return tuple(b for bindings in inputs.values() for b in bindings if isinstance(b, str) and b in known)
