"""Rules about attention, fused or about to be, and about what is made of its scores."""

from __future__ import annotations

import math

from snapgen_deploy.export.lint.graph import Graph, sizes
from snapgen_deploy.export.lint.rule import Found, Rule, Subject
from snapgen_deploy.export.mil.saved.program import Operation

FUSED = "scaled_dot_product_attention"
LARGE_ATTENTION = 2**18
"""Keys times numbers of a head from which a fused attention counts as large: 4096 keys of 64.

The report names global attention (heads of 512 over thousands of keys) and calls sliding windows (heads of 256) safe.
Source: https://github.com/kasper0406/stablehlo-coreml/pull/89"""
WRONG_BATCH = 10
"""Batch from which the fused kernel of the GPU is wrong. Source: https://github.com/apple/coremltools/issues/2650"""


def _key_shape(graph: Graph, op: Operation) -> tuple[int, ...]:
    """Shape of a fused attention's keys; () where it is not known."""
    (key,) = op.inputs["key"]
    return (isinstance(key, str) and key in graph.types and sizes(graph.types[key])) or ()


def _check_several_fused(subject: Subject) -> Found | None:
    examples = []
    for graph in subject.graphs:
        large = [
            subject.example(op, f"{shape[-2]} keys of {shape[-1]}")
            for op in graph.operations
            if op.type == FUSED and math.prod((shape := _key_shape(graph, op))[-2:]) >= LARGE_ATTENTION
        ]
        examples += large if len(large) > 1 else []
    return Found(tuple(examples), f"large fused attentions that share a function: {len(examples)}") if examples else None


def _becomes_fused(graph: Graph, op: Operation) -> bool:
    """Whether an operation is the softmax of matmul, add, softmax, matmul, which Core ML fuses on the GPU by itself."""
    if op.type != "softmax" or not any(after.type == "matmul" for after in graph.after(op)):
        return False
    return any(a.type == "add" and any(m.type == "matmul" for m in graph.before(a)) for a in graph.before(op))


def _check_batch(subject: Subject) -> Found | None:
    examples = []
    for graph, op in subject.operations():
        if op.type == FUSED or _becomes_fused(graph, op):
            shape = sizes(op.outputs[0].type) or ()
            if len(shape) > 2 and shape[0] >= WRONG_BATCH:
                examples.append(subject.example(op, f"batch {shape[0]}"))
    return Found(tuple(examples), f"attentions at a batch of {WRONG_BATCH} or more: {len(examples)}") if examples else None


def _check_argmax(subject: Subject) -> Found | None:
    examples = []
    for graph, op in subject.operations():
        kinds = {graph.types[name].dtype.name for name in graph.inputs(op)}
        if op.type in ("reduce_argmax", "argmax") and "fp16" in kinds:
            examples.append(subject.example(op))
    return (
        Found(tuple(examples), f"places of a maximum that are sought in half precision: {len(examples)}") if examples else None
    )


RULES = (
    Rule(
        "several-fused-attentions",
        "warning",
        "a function with two or more large fused attentions was seen to leave the Neural Engine whole, without an error: its "
        "compiler fails at the deepest of them",
        ("https://github.com/kasper0406/stablehlo-coreml/pull/89",),
        "spell all but one as matmul, softmax and matmul, attend to fewer keys, or put them into functions of their own",
        _check_several_fused,
    ),
    Rule(
        "attention-batch",
        "warning",
        "the GPU's fused attention gives wrong numbers at a batch of 10 or more; CPU and Neural Engine are right",
        ("https://github.com/apple/coremltools/issues/2650",),
        "keep the batch below 10, fold it into the heads, or load the model with the units cpuAndNeuralEngine",
        _check_batch,
    ),
    Rule(
        "argmax",
        "warning",
        "argmax over half-precision numbers gave wrong places on an iPhone 17 Pro with the default units; on the CPU, and over "
        "single-precision numbers, they are right",
        ("https://github.com/apple/coreai-torch/issues/116",),
        "give the numbers out and take argmax in the app, cast them to fp32 before, or use topk",
        _check_argmax,
    ),
)
