"""Rules about numbers: what half precision cannot hold, and what leaves half precision."""

from __future__ import annotations

import numpy as np

from snapgen_deploy.export.lint.findings import Example
from snapgen_deploy.export.lint.graph import LAYOUT, Graph
from snapgen_deploy.export.lint.rule import Found, Rule, Subject
from snapgen_deploy.export.mil.saved.program import Operation

HALF_MAX = 65504.0
"""Largest finite number of IEEE 754 binary16."""

_CHUNK = 1 << 22  # elements looked at together, so that a large weight is never copied whole
_HALF_EXPONENT = 0x7C00  # all exponent bits set: infinity or NaN
_WIDE = ("fp32", "fp64")
_APPLE = "https://machinelearning.apple.com/research/neural-engine-transformers"


def _first_outside(values: np.ndarray) -> float | None:
    """The first value that is infinite, NaN or beyond half precision's range, or None."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        if part.dtype == np.float16:
            outside = (part.view(np.uint16) & _HALF_EXPONENT) == _HALF_EXPONENT
        else:
            outside = ~(np.abs(part) <= HALF_MAX)
        if outside.any():
            return float(part[int(outside.argmax())])
    return None


def _only_clips(graph: Graph, op: Operation) -> bool:
    """Whether a constant serves only as a bound of `clip`, where infinity means no bound."""
    users = graph.consumers.get(op.outputs[0].name, ()) if op.type == "const" and op.outputs else (op,)
    return bool(users) and all(u.type == "clip" for u in users)


def _check_constants(subject: Subject) -> Found | None:
    examples = []
    for graph in subject.graphs:
        for op, constant in graph.constants:
            if not constant.type.dtype.floating or _only_clips(graph, op):
                continue
            values = constant.read()
            outside = _first_outside(values) if isinstance(values, np.ndarray) else None
            if outside is not None:
                output = op.outputs[0].name if op.outputs else op.name
                examples.append(Example(op.type, output, str(constant.type), f"holds {outside:g}"))
    if not examples:
        return None
    return Found(tuple(examples), f"constants beyond half precision's ±{HALF_MAX:g}: {len(examples)}")


def _check_fp32(subject: Subject) -> Found | None:
    wide = []
    half = False
    for _, op in subject.operations():
        dtypes = {v.type.dtype.name for v in op.outputs}
        half = half or "fp16" in dtypes
        if op.type != "cast" and dtypes & set(_WIDE):
            wide.append(op)
    if not wide:
        return None
    where = "inside a half-precision program" if half else "in a program without any half precision"
    return Found(tuple(subject.example(op) for op in wide), f"operations that compute in fp32, {where}: {len(wide)}")


def _check_mask_rows(subject: Subject) -> Found | None:
    examples = []
    for graph, op in subject.operations():
        mask = graph.parameter(op, "attn_mask") if op.type == "scaled_dot_product_attention" else None
        if isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and (rows := int((~mask.any(-1)).sum())):
            examples.append(subject.example(op, f"{rows} of {mask[..., 0].size} rows"))
    if not examples:
        return None
    return Found(tuple(examples), f"fused attentions whose mask leaves rows no key: {len(examples)}")


def _cast_before(graph: Graph, op: Operation) -> Operation | None:
    """The cast from which an operation's input comes with nothing but layout operations between."""
    current = op
    while True:
        name = next(iter(graph.inputs(current)), None)
        producer = graph.producers.get(name) if name is not None else None
        if producer is None or producer.type == "cast":
            return producer
        if producer.type not in LAYOUT:
            return None
        current = producer


def _check_cast_pairs(subject: Subject) -> Found | None:
    examples = []
    for graph, op in subject.operations():
        first = _cast_before(graph, op) if op.type == "cast" else None
        if first is None:
            continue
        source, middle = graph.types[graph.inputs(first)[0]].dtype, first.outputs[0].type.dtype
        if source == op.outputs[0].type.dtype and source.floating and middle.floating and source != middle:
            examples.append(subject.example(op, f"{source.name} → {middle.name} → {source.name}"))
    if not examples:
        return None
    return Found(tuple(examples), f"casts that undo an earlier cast with no arithmetic between: {len(examples)}")


RULES = (
    Rule(
        "constant-range",
        "error",
        "a constant that half precision cannot hold becomes infinite, and a softmax over infinities gives NaN; the Neural "
        "Engine does not handle -inf as IEEE 754 says",
        (
            "https://github.com/apple/coremltools/pull/2669",
            "https://github.com/cactus-compute/cactus/pull/734",
            "https://github.com/apple/coreai-models (skill model-authoring, Neural Engine rules: causal mask)",
        ),
        "use a finite mask value such as -4e4, which exp() takes to zero in half precision",
        _check_constants,
    ),
    Rule(
        "empty-mask-row",
        "warning",
        "a row that a mask leaves no key is a softmax over infinities: NaN by the formula, 0 in PyTorch and on this machine, "
        "either on a device",
        ("https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html",),
        "leave every row at least one key, for instance its own",
        _check_mask_rows,
    ),
    Rule(
        "fp32-island",
        "warning",
        "the Neural Engine computes in half precision only: fp32 operations run on CPU or GPU, with a copy each way",
        (
            "https://github.com/apple/coreai-models (skill model-authoring, Neural Engine rules: float32 intermediates)",
            "https://github.com/hollance/neural-engine/blob/master/docs/16-bit.md",
            "https://github.com/vx-lang/Vx/issues/437",
        ),
        "convert with compute_precision FLOAT16, and cast fp32 inputs before the first operation",
        _check_fp32,
    ),
    Rule(
        "cast-pair",
        "warning",
        "a cast to another type and straight back copies the tensor twice for nothing",
        (_APPLE, "https://github.com/apple/coreai-models (skill model-authoring, Neural Engine rules: memory copies)"),
        "drop both casts, or run coremltools' default passes, which cancel them",
        _check_cast_pairs,
    ),
)
