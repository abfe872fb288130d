"""Rules about shapes and how tensors lie in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from snapgen_deploy.export.lint.findings import Example
from snapgen_deploy.export.lint.graph import LAYOUT, ROW_ALIGNMENT, Graph, padded_bytes, row_bytes, sizes
from snapgen_deploy.export.lint.rule import Found, Rule, Subject
from snapgen_deploy.export.mil.saved.program import Operation, PackagePort

_MAX_RANK = 5
MAX_AXIS = 16384
LARGE_ACTIVATION = 256 * 1024
"""Padded bytes from which a narrow last axis is worth a word: an eighth of the smallest figure for on-chip memory (2 MB)."""

_APPLE = "https://machinelearning.apple.com/research/neural-engine-transformers"
_RULES = "https://github.com/apple/coreai-models (skill model-authoring, Neural Engine rules: {})"
_CONVOLUTIONS = ("conv", "conv_transpose")
_BARRIERS = frozenset(
    {"matmul", "einsum", "linear", "scaled_dot_product_attention", "gather", "gather_nd", "gather_along_axis"}
)
"""Operations that need their operands in a layout of their own, so a change of layout next to them can be due to them."""


def _check_rank(subject: Subject) -> Found | None:
    examples = tuple(
        Example(op, value.name, str(value.type))
        for op, value in subject.activations()
        if value.type.shape is not None and len(value.type.shape) > _MAX_RANK
    )
    return Found(examples, f"tensors with more than {_MAX_RANK} axes: {len(examples)}") if examples else None


def _check_last_axis(subject: Subject) -> Found | None:
    narrow: list[tuple[int, Example]] = []
    for op, value in subject.activations():
        shape, padded = sizes(value.type), padded_bytes(value.type)
        if not shape or padded < LARGE_ACTIVATION or row_bytes(value.type, shape) >= ROW_ALIGNMENT:
            continue
        row = row_bytes(value.type, shape)
        note = f"{row} bytes a row, {ROW_ALIGNMENT / row:.3g}x the memory"
        narrow.append((padded - math.prod(shape[:-1]) * row, Example(op, value.name, str(value.type), note)))
    if not narrow:
        return None
    narrow.sort(key=lambda entry: -entry[0])
    waste = f"{narrow[0][0] / 1e6:.2f} MB"
    message = f"large activations with a last axis under {ROW_ALIGNMENT} bytes: {len(narrow)}; the worst wastes {waste}"
    return Found(tuple(e for _, e in narrow), message)


def _check_long_axis(subject: Subject) -> Found | None:
    examples = tuple(
        Example(op, value.name, str(value.type), f"axis of {max(shape)}")
        for op, value in subject.activations()
        if (shape := sizes(value.type)) and max(shape) > MAX_AXIS
    )
    return Found(examples, f"tensors with an axis longer than {MAX_AXIS}: {len(examples)}") if examples else None


def _flexible(port: PackagePort) -> str:
    """How a port's shape may vary; "" when it may not."""
    if len(port.shapes) > 1:
        return f"{len(port.shapes)} enumerated shapes"
    if any(lower != upper for lower, upper in port.ranges):
        return "sizes " + ", ".join(str(a) if a == b else f"{a}..{'any' if b is None else b}" for a, b in port.ranges)
    return ""


def _check_dynamic(subject: Subject) -> Found | None:
    ports = [
        Example("input", port.name, f"{port.dtype}{list(port.shape)}", how)
        for interface in subject.package.interfaces.values()
        for port in interface.inputs
        if (how := _flexible(port))
    ]
    values = [
        Example(op, value.name, str(value.type))
        for op, value in subject.activations()
        if op != "input" and value.type.kind == "tensor" and sizes(value.type) is None
    ]
    if not ports and not values:
        return None
    message = f"inputs of flexible shape: {len(ports)}, tensors of a size known only at run time: {len(values)}"
    return Found((*ports, *values), message)


def _check_empty(subject: Subject) -> Found | None:
    examples = tuple(
        Example(op, value.name, str(value.type)) for op, value in subject.activations() if 0 in (sizes(value.type) or ())
    )
    return Found(examples, f"tensors without any element: {len(examples)}") if examples else None


def _moves_data(graph: Graph, op: Operation) -> bool:
    """Whether a layout operation rewrites memory: one that keeps the last axis, or moves only axes of size 1, need not."""
    names = graph.inputs(op)
    before = sizes(graph.types[names[0]]) if names else None
    after = sizes(op.outputs[0].type) if op.outputs else None
    if before is None or after is None:
        return False
    if op.type != "transpose":
        return (before[-1:] or (1,)) != (after[-1:] or (1,))
    perm = np.asarray(graph.parameter(op, "perm"), dtype=np.int64) % len(before)
    moved = [axis for axis in perm.tolist() if before[axis] != 1]
    return moved != sorted(moved)


def _near_convolution(order: Iterable[Operation], neighbours: Callable[[Operation], Iterator[Operation]]) -> set[int]:
    """Places of the operations that a convolution reaches, going through `order`, before one that needs its own layout."""
    reached: set[int] = set()
    for op in order:
        if any(n.type in _CONVOLUTIONS or (n.type not in _BARRIERS and n.place in reached) for n in neighbours(op)):
            reached.add(op.place)
    return reached


def _check_between_convolutions(subject: Subject) -> Found | None:
    examples = []
    for graph in subject.graphs:
        between = _near_convolution(graph.operations, graph.before)
        between &= _near_convolution(reversed(graph.operations), graph.after)
        examples += [
            subject.example(op, f"from {graph.types[graph.inputs(op)[0]]}")
            for op in graph.operations
            if op.type in LAYOUT and op.place in between and _moves_data(graph, op)
        ]
    if not examples:
        return None
    return Found(tuple(examples), f"transposes and reshapes that rewrite memory between convolutions: {len(examples)}")


RULES = (
    Rule(
        "rank",
        "error",
        "Core ML takes tensors of at most five axes; a program with more is refused or fails on the device",
        (
            "https://github.com/roboflow/rf-detr/issues/191",
            "https://github.com/sbryngelson/ANEForge/blob/main/docs/developer/op-quirks.md",
            _RULES.format("programming constraints"),
        ),
        "merge or drop axes before the reshape, or split the tensor and treat the parts one by one",
        _check_rank,
    ),
    Rule(
        "narrow-last-axis",
        "warning",
        "the Neural Engine's buffers pad the last axis to 64 bytes: a last axis of one takes 32 times the memory in half "
        "precision, and the bandwidth with it",
        (_APPLE, _RULES.format("tensor memory alignment")),
        "lay activations out as (batch, channels, 1, tokens) or (batch, channels, height, width) with at least 32 half-"
        "precision elements on the last axis",
        _check_last_axis,
    ),
    Rule(
        "long-axis",
        "warning",
        "axes beyond 16384 elements were observed to leave the Neural Engine",
        (
            "https://github.com/microsoft/onnxruntime/issues/19543",
            "https://github.com/chrishayuk/larql/pull/312",
            "https://github.com/sbryngelson/ANEForge/blob/main/docs/op-catalog.md (transpose)",
        ),
        "keep height and width as two axes instead of one axis of tokens, or work on slices",
        _check_long_axis,
    ),
    Rule(
        "empty-tensor",
        "error",
        "a split or slice of width 0 ends the app's process when the model is loaded for the GPU or the Neural Engine, even "
        "where nothing uses it; the CPU runs it",
        ("https://github.com/apple/coreai-torch/issues/68", "https://github.com/ultralytics/ultralytics/pull/25926"),
        "leave the empty part out of the split, and drop the empty slice or output before export",
        _check_empty,
    ),
    Rule(
        "dynamic-shape",
        "warning",
        "with a range of sizes only the default shape runs on the Neural Engine; enumerated shapes were seen to fall back too",
        (
            "https://developer.apple.com/forums/thread/724930",
            "https://github.com/apple/coremltools/issues/2370",
            "https://apple.github.io/coremltools/docs-guides/source/flexible-inputs.html",
        ),
        "export one package, or one function of a package, for each shape",
        _check_dynamic,
    ),
    Rule(
        "layout-between-convolutions",
        "warning",
        "a transpose or reshape that touches the last axis rewrites the whole tensor in memory",
        (_APPLE, _RULES.format("memory copies")),
        "stay in (batch, channels, height, width) from one convolution to the next: 1x1 convolutions instead of linear "
        "layers, norms over the channel axis",
        _check_between_convolutions,
    ),
)
