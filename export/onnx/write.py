"""Writes an exported program as an ONNX file whose bytes depend on the network alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import (
    Component,
)
from snapgen_deploy.export.onnx import file as onnx_file

if TYPE_CHECKING:
    import onnx_ir


_OPSET = 20  # the first with Gelu as one operator


EXTERNAL_DATA_BYTES = 2_000_000_000


SMALL_TENSOR = 1024  # bytes; smaller tensors stay in the model file when weights are external


MEASURED, OPERATOR, SPELLED = "measured", "operator", "spelled"  # how attention is written


ATTENTIONS = (MEASURED, OPERATOR, SPELLED)


IR_TYPES = {"FLOAT": "float32", "INT32": "int32"}


GRAPH_KEY = "snapgen_graph"  # key in the file's metadata: how its graph was made


@dataclasses.dataclass(frozen=True)
class OnnxSettings:
    """Options of one export, checked."""

    optimize: str = "none"
    opset: int = _OPSET
    external_data_bytes: int = EXTERNAL_DATA_BYTES
    folders: str = "flat"
    license: str = ""
    author: str = ""
    attention: str = SPELLED

    @staticmethod
    def parse(options: Mapping[str, str], attention: str = SPELLED) -> OnnxSettings:
        """From the plan's text options; `attention` is the target's own default.

        Raises:
            BadInput: if a name is unknown, or a value is not allowed.
        """
        known = [f.name for f in dataclasses.fields(OnnxSettings)]
        if unknown := sorted(set(options) - set(known)):
            raise BadInput(f"onnx: unknown option {unknown[0]!r}; known are {', '.join(known)}")
        optimize = options.get("optimize", "none")
        if optimize not in ("none", "optimum"):
            raise BadInput(f"onnx: option optimize={optimize!r}; expected none or optimum")
        folders = options.get("folders", "flat")
        if folders not in ("flat", "diffusers"):
            raise BadInput(f"onnx: option folders={folders!r}; expected flat or diffusers")
        attention = options.get("attention", attention)
        if attention not in ATTENTIONS:
            raise BadInput(f"onnx: option attention={attention!r}; expected {', '.join(ATTENTIONS[:-1])} or {ATTENTIONS[-1]}")
        return OnnxSettings(
            optimize,
            _integer(options, "opset", _OPSET, _OPSET),
            _integer(options, "external_data_bytes", EXTERNAL_DATA_BYTES, 0),
            folders,
            options.get("license", ""),
            options.get("author", ""),
            attention,
        )


def _integer(options: Mapping[str, str], name: str, default: int, least: int) -> int:
    text = options.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise BadInput(f"onnx: option {name}={text!r}; expected a whole number, at least {least}")
    return int(text)


def write(model: onnx_ir.Model, component: Component, origin: str, path: Path, settings: OnnxSettings) -> Path:
    """Clean `model`, save it at `path` with its weights inside or beside it, check the file, and return `path`.

    The model loses its weights, since onnxscript's rewriting rules keep references to the last graphs. `origin` says how the
    graph was made; it is stored in the file.

    Raises:
        RuntimeError: if names, shapes or types of inputs and outputs are not the component's.
        Exception: if the file is not valid: onnx's ValidationError.
    """
    import onnx_ir

    path.parent.mkdir(exist_ok=True)
    clean(model, component, origin, settings)
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    if sum(t.nbytes for t in tensors) > settings.external_data_bytes:
        onnx_ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=SMALL_TENSOR)
    else:
        onnx_file.write(model, path)
    for value in model.graph.initializers.values():
        value.const_value = None
    check_file(path)
    return path


def clean(model: onnx_ir.Model, component: Component, origin: str, settings: OnnxSettings) -> None:
    """Drop what differs from run to run, document ports and model, and say how the graph was made.

    Raises:
        RuntimeError: if names, shapes or types of inputs and outputs are not the component's.
    """
    _clean(model)
    _free_names(model)
    _check_ports(model, component)
    for value, port in zip([*model.graph.inputs, *model.graph.outputs], [*component.inputs, *component.outputs], strict=True):
        value.doc_string = port.doc
    model.doc_string = component.doc
    stated = {GRAPH_KEY: origin, "author": settings.author, "license": settings.license}
    model.metadata_props.update({key: text for key, text in stated.items() if text})


def check_file(path: Path) -> None:
    """Check a saved file.

    Raises:
        Exception: if it is not valid: onnx's ValidationError.
    """
    import onnx

    onnx.checker.check_model(str(without_weights(path)), full_check=True)


def without_weights(path: Path) -> Path:
    """A model in the parent folder that refers to the large weights in the file at `path` and its external data.

    For libraries that would hold the weights of one file several times.
    """
    model, places = onnx_file.read(path)
    for entry in (e for w in model.graph.initializer for e in w.external_data if e.key == "location"):
        entry.value = f"{path.parent.name}/{entry.value}"
    onnx_file.refer(model, places, f"{path.parent.name}/{path.name}")
    light = path.parent.parent / path.name
    light.write_bytes(model.SerializeToString())
    return light


def _clean(model: onnx_ir.Model) -> None:
    """Drop data that depends on the machine or the run (stack traces, source paths, doc strings), and unused opsets."""
    used = {""}
    model.metadata_props.clear()
    for graph in (model.graph, *(f.graph for f in model.functions.values())):
        graph.doc_string = None
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            used.add(node.domain)
            node.doc_string = None
            node.metadata_props.clear()
            for value in node.outputs:
                value.doc_string = None
                value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.doc_string = None
        value.metadata_props.clear()
    ordered = sorted(model.graph.initializers.items())
    model.graph.initializers.clear()
    model.graph.initializers.update(ordered)
    for domain in set(model.opset_imports) - used:
        del model.opset_imports[domain]


def _free_names(model: onnx_ir.Model) -> None:
    """Rename inner values whose names collide with names of ports."""
    taken = {v.name for v in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name in taken and not value.is_graph_output():
                value.name = f"{value.name}_of_{node.name}"


def _check_ports(model: onnx_ir.Model, component: Component) -> None:
    for kind, values, ports in (
        ("inputs", model.graph.inputs, component.inputs),
        ("outputs", model.graph.outputs, component.outputs),
    ):
        got = [(v.name, tuple(v.shape or ()), IR_TYPES.get(str(v.dtype), str(v.dtype))) for v in values]
        expected = [(p.name, p.shape, p.dtype) for p in ports]
        if got != expected:
            raise RuntimeError(f"{kind} of the exported graph are {got}, expected {expected}")
