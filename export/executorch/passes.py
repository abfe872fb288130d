"""Lowering without tracing or checking a graph again that has not changed.

Each of XNNPACK's 17 passes (ExecuTorch 1.4.1, `backends/xnnpack/_passes`) ends by interpreting the whole graph once more with
fake tensors, and is followed by two checks of the whole program, even where it found nothing to change: half of what lowering
takes. Here a pass that changed no node since the last trace skips all of that. The trace of a traced graph is the same graph.

Every program that is made from another interprets its graph to check the types of arguments (`exir/verification/verifier.py`),
14 times in one lowering, of which 10 look at the graph that passed before.

A lowering also decomposes the graph three times, each a trace of the whole: to take operators out that change their inputs, to
decompose, and to decompose what XNNPACK does not take after all. Most graphs have nothing for the first and the last.

The writer of files asks for the types of a record's fields once for every field of every record.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from operator import getitem
from typing import Any

from snapgen_deploy.export.shared.replaced import replaced

# By which a pass may change what a trace makes of a graph.
_HOOKS = (
    "call_operator", "call_sym", "call_cond", "call_map", "call_getitem", "call_delegate", "call_submodule", "get_attr",
    "placeholder", "output", "inputs",
)  # fmt: skip


def _nodes(graph: Any) -> list[tuple[object, ...]]:
    """What a graph says, node by node: equal for graphs that compute the same in the same way."""
    return [(n.op, n.name, n.target, str(n.args), str(n.kwargs)) for n in graph.nodes]


def _inputs(graph: Any) -> list[tuple[object, ...]]:
    """Shapes and types of a graph's inputs, from which all others follow."""
    return [(n.name, str(n.meta.get("val"))) for n in graph.nodes if n.op == "placeholder"]


def _has_to_be_decomposed(graph: Any, table: Any) -> bool:
    """Whether a decomposition with a table may change a graph; with an empty one, whether an operator changes its input.

    torch decomposes some operators whatever the table says. After an empty one, another decomposition does that.
    """
    from torch._export.utils import _check_valid_to_preserve, _is_cia_op
    from torch._ops import OpOverload

    def stays(operator: Any) -> bool:
        if operator is getitem:
            return True
        if not isinstance(operator, OpOverload) or operator._schema.is_mutable or operator in table:
            return False
        return not table or not _is_cia_op(operator) or _check_valid_to_preserve(operator)

    if not all(n.op in ("placeholder", "call_function", "output") for n in graph.nodes):
        return True
    return not all(map(stays, {n.target for n in graph.nodes if n.op == "call_function"}))


@contextlib.contextmanager
def quick_passes() -> Iterator[None]:
    """Within the block, graphs that did not change are neither traced nor checked again. The files are the same."""
    from executorch.backends.xnnpack import _passes
    from executorch.exir._serialize import _dataclass
    from executorch.exir.pass_base import ExportPass
    from executorch.exir.program._program import _update_exported_program_graph_module
    from executorch.exir.verification import verifier
    from torch.export import ExportedProgram
    from torch.fx.passes.infra.pass_base import PassResult

    trace, transform, check = ExportPass.call, _passes._transform, verifier._check_tensor_args_matching_op_allowed_dtype
    hints, decompose = _dataclass.get_type_hints, ExportedProgram.run_decompositions
    traced: list[Any] = [None, None]  # the last graph that came out of a trace, and its nodes
    checked: list[Any] = [None, None]  # the last graph whose types were right, and its nodes

    def call(self: Any, module: Any) -> Any:
        plain = all(getattr(type(self), hook, None) is getattr(ExportPass, hook, None) for hook in _HOOKS)
        if plain and traced[0] is module.graph and traced[1] == _nodes(module.graph):
            return PassResult(module, False)
        result = trace(self, module)
        traced[:] = [result.graph_module.graph, _nodes(result.graph_module.graph)]
        return result

    def run(program: Any, one: Any) -> Any:
        if not isinstance(one, ExportPass):
            return transform(program, one)
        before = _nodes(program.graph_module.graph)
        result = one(program.graph_module)
        if result.graph_module.graph is program.graph_module.graph and _nodes(result.graph_module.graph) == before:
            return program
        result.graph_module.recompile()
        return _update_exported_program_graph_module(program, result.graph_module)

    def check_types(module: Any) -> None:
        now = [module.graph, [*_nodes(module.graph), *_inputs(module.graph)]]
        if checked[0] is not now[0] or checked[1] != now[1]:
            check(module)
            checked[:] = now

    def decomposed(program: Any, decomp_table: Any = None, **options: Any) -> Any:
        if decomp_table is None or options or _has_to_be_decomposed(program.graph, decomp_table):
            return decompose(program, decomp_table, **options)
        return program

    with (
        replaced(ExportPass, "call", call),
        replaced(ExportedProgram, decompose.__name__, decomposed),
        replaced(_passes, "_transform", run),
        replaced(verifier, check.__name__, check_types),
        replaced(_dataclass, hints.__name__, functools.cache(hints)),
    ):
        yield
