"""Rules about operations that do not stay on the Neural Engine."""

from __future__ import annotations

import numpy as np

from snapgen_deploy.export.lint.graph import Graph, sizes
from snapgen_deploy.export.lint.off_engine import (
    CATALOG,
    GATHERS,
    HOLLANCE,
    MAX_KERNEL_WIDTH,
    OFF_ENGINE,
    RF_DETR,
    SCATTERS,
    TOPK,
)
from snapgen_deploy.export.lint.rule import Found, Rule, Subject
from snapgen_deploy.export.mil.saved.program import Operation

LONG_ROW = 2048
"""Keys in one softmax beyond which fused attention gave wrong numbers and a split over queries was about 3 times faster.
Source: https://github.com/sbryngelson/ANEForge/blob/main/docs/developer/op-quirks.md (attention)"""

_QUIRKS = "https://github.com/sbryngelson/ANEForge/blob/main/docs/developer/op-quirks.md"
_INTEGER_ARITHMETIC = frozenset({"add", "sub", "mul", "floor_div", "real_div", "maximum", "minimum", "select", "abs", "sign"})


def _check_gather(subject: Subject) -> Found | None:
    examples = tuple(subject.example(op) for _, op in subject.operations() if op.type in GATHERS | SCATTERS)
    if not examples:
        return None
    scatters = sum(e.op in SCATTERS for e in examples)
    return Found(examples, f"gathers: {len(examples) - scatters}, scatters: {scatters}")


def _why_off(graph: Graph, op: Operation) -> str:
    """Why an operation is expected to leave the Neural Engine; "" when it is not."""
    if op.type in OFF_ENGINE:
        return OFF_ENGINE[op.type]
    if op.type in _INTEGER_ARITHMETIC and op.outputs and op.outputs[0].type.dtype.name.startswith(("int", "uint")):
        return "integer arithmetic"
    if op.type in ("conv", "conv_transpose"):
        width = _kernel_width(graph, op)
        if width > MAX_KERNEL_WIDTH:
            return f"kernel {width} wide"
    return ""


def _kernel_width(graph: Graph, op: Operation) -> int:
    """Last axis of a convolution's stored weight; 0 where the weight is no constant."""
    for name in op.inputs.get("weight", ()):
        shape = sizes(graph.stored[name]) if isinstance(name, str) and name in graph.stored else None
        if shape:
            return shape[-1]
    return 0


def _check_off_engine(subject: Subject) -> Found | None:
    examples = tuple(subject.example(op, why) for graph, op in subject.operations() if (why := _why_off(graph, op)))
    if not examples:
        return None
    kinds = sorted({e.op for e in examples})
    return Found(examples, f"operations known to run elsewhere: {len(examples)} ({', '.join(kinds)})")


def _row(graph: Graph, op: Operation) -> int:
    """Elements over which one softmax runs; 0 for other operations and unknown sizes."""
    if op.type == "softmax":
        shape, axis = sizes(op.outputs[0].type), graph.parameter(op, "axis")
        return shape[int(np.asarray(-1 if axis is None else axis).item())] if shape else 0
    if op.type == "scaled_dot_product_attention":
        key = op.inputs["key"][0]
        shape = sizes(graph.types[key]) if isinstance(key, str) and key in graph.types else None
        return shape[-2] if shape else 0
    return 0


def _check_softmax(subject: Subject) -> Found | None:
    rows = [(n, subject.example(op, f"rows of {n}")) for graph, op in subject.operations() if (n := _row(graph, op)) > LONG_ROW]
    if not rows:
        return None
    rows.sort(key=lambda row: -row[0])
    message = f"softmaxes over more than {LONG_ROW} elements: {len(rows)}; the longest over {rows[0][0]}"
    return Found(tuple(e for _, e in rows), message)


def _begins_inside(graph: Graph, op: Operation) -> bool:
    """Whether an operation cuts a part out of the last axis that does not begin at its start."""
    names = graph.inputs(op)
    whole, part = sizes(graph.types[names[0]]) if names else None, sizes(op.outputs[-1].type) if op.outputs else None
    if not whole or not part or whole[-1] == part[-1]:
        return False
    if op.type == "split":
        return True
    begin = graph.parameter(op, "begin")
    return op.type in ("slice_by_index", "slice_by_size") and begin is not None and bool(np.asarray(begin).reshape(-1)[-1])


def _check_width_slices(subject: Subject) -> Found | None:
    examples = tuple(subject.example(op) for graph, op in subject.operations() if _begins_inside(graph, op))
    return Found(examples, f"slices that begin inside the last axis: {len(examples)}") if examples else None


RULES = (
    Rule(
        "gather-scatter",
        "warning",
        "Core ML's compute plans list gather for the CPU only, and scatter has no kernel on the Neural Engine",
        (
            "https://huggingface.co/SingularityUS/atc-whisperkit/blob/main/small/TextDecoder.mlcomputeplan.json",
            RF_DETR,
            "https://github.com/apple/coremltools/issues/1103",
            CATALOG,
        ),
        "replace fixed indices by slices, split and concat; keep an embedding lookup as the first operation of its component",
        _check_gather,
    ),
    Rule(
        "off-engine",
        "warning",
        "an operation that the Neural Engine cannot run splits the program, with a copy to another processor and back",
        (CATALOG, HOLLANCE, RF_DETR, TOPK),
        "compute it before export as a constant or an input, or spell it with supported operations (logic as min and max of "
        "0 and 1, indices in floats)",
        _check_off_engine,
    ),
    Rule(
        "softmax-rows",
        "warning",
        "attention over very long rows writes its scores to memory; it is the largest tensor of the network and does not fit "
        "on the chip",
        (
            _QUIRKS,
            "https://arxiv.org/abs/2601.08303 (2000 ms with full attention over 4096 tokens, 293 ms with sparse attention)",
            "https://github.com/apple/coreai-models (skill model-authoring, Neural Engine rules: softmax placement)",
        ),
        "attend to pooled or neighbouring keys only, or split the queries so that one softmax takes a few hundred rows",
        _check_softmax,
    ),
    Rule(
        "width-slice",
        "info",
        "on chips before the A16 a slice that begins inside the last axis took values beyond 4094 to infinity, and several "
        "of them joined again held wrong elements; A16 and later are exact",
        (
            "https://github.com/sbryngelson/ANEForge/blob/main/docs/numeric-cliffs.md",
            "https://github.com/sbryngelson/ANEForge/pull/145",
            CATALOG,
        ),
        "nothing for A16 and later; for older chips slice along another axis, and check a picture on the device",
        _check_width_slices,
    ),
)
