"""What `torch.onnx.export` does too often: rules that traverse the whole graph for every node, and reading its own library.

A rule whose pattern has several outputs lists all nodes of the graph before it compares the first (onnxscript 0.7). The time of
an export then grows with the square of the number of nodes, to twenty minutes for the 1.6B student. The only such rule merges
two slices into a split, and our networks have none.

Every other rule is tried on every node, and says in a text that the node is of another operator than its pattern's: a fifth
of an export. Here only rules whose pattern ends in the node's operator are tried.

Each export reads the source text of some 500 functions of onnxscript's torchlib, and the annotations of their arguments, a
second in all; once in a process is enough.

It also decomposes every graph, which traces the whole of it anew, twice: half of an export. Where each operator of a graph has
a function of torchlib there is nothing to decompose, and slices of the whole length, which tracing leaves out, are taken out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

from snapgen_deploy.export.shared.replaced import replaced
from snapgen_deploy.export.shared.tracing import quick_tracing


@cache
def _read(read: Callable[..., Any], **options: int) -> Any:
    """What torch's `ONNXRegistry.from_torchlib` returns."""
    return read(**options)


def _copied(read: Callable[..., Any], **options: int) -> Any:
    """A registry of the same functions: the caller may add some."""
    registry = copy.copy(_read(read, **options))
    registry.functions = {operator: list(functions) for operator, functions in registry.functions.items()}
    return registry


def _where_operators_fit(try_rewrite: Callable[..., Any]) -> Callable[..., Any]:
    """onnxscript's `RewriteRule.try_rewrite`, called only for nodes whose operator the pattern ends in."""

    def first_look(rule: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        if not rule._target_pattern.output_node.op.matches(node.op_type):
            return None
        return try_rewrite(rule, model, graph, node, **options)

    return first_look


def _where_needed(decompose: Callable[..., Any]) -> Callable[..., Any]:
    """torch's `decompose_with_registry`, called only for graphs that hold something to decompose."""

    def ours(program: Any, registry: Any) -> Any:
        known = {functions[0].fx_target for functions in registry.functions.values()}
        if not all(_is_written_as(node, known) for node in program.graph.nodes):
            return decompose(program, registry)
        _drop_whole_slices(program.graph)
        return program

    return ours


def _is_written_as(node: Any, known: Collection[Any]) -> bool:
    """Whether a node goes into a file as it is: an operator with a function of torchlib that changes no input."""
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    schema = getattr(node.target, "_schema", None)
    return node.target in known and not (schema is not None and schema.is_mutable)


def _drop_whole_slices(graph: Any) -> None:
    """Take out slices that keep everything: onnxruntime would copy."""
    import torch

    for target in (torch.ops.aten.slice.Tensor, torch.ops.aten.narrow.default):
        for node in graph.find_nodes(op="call_function", target=target):
            if node.args[0].meta["val"].shape == node.meta["val"].shape:
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)


@contextmanager
def rules_of_linear_time() -> Iterator[None]:
    """Within the block, `torch.onnx.export(optimize=True)` uses only rules whose pattern has one output, and
    only where they can apply. It reads its library at most once in this process, and decomposes only what has to be.
    """
    from onnxscript import rewriter
    from torch.onnx._internal.exporter import _fx_passes
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    name, library, decompose = "_DEFAULT_REWRITE_RULES", "from_torchlib", "decompose_with_registry"
    ours = tuple(r for r in getattr(rewriter, name) if r._target_pattern.has_single_output_node)
    rule, first_look = rewriter.RewriteRule, _where_operators_fit(rewriter.RewriteRule.try_rewrite)
    with (
        replaced(rewriter, name, ours),
        replaced(rule, "try_rewrite", first_look),
        replaced(_fx_passes, decompose, _where_needed(getattr(_fx_passes, decompose))),
        replaced(ONNXRegistry, library, partial(_copied, getattr(ONNXRegistry, library))),
        quick_tracing(),
    ):
        yield
