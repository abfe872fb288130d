"""The rules of the lint that were seen to fail in Core AI, over the graph of one function."""

from __future__ import annotations

from typing import Any

from snapgen_deploy.export.coreai.weights import CONSTANT, RETURN, dtype, operations, short
from snapgen_deploy.export.lint import RULES, Finding
from snapgen_deploy.export.lint.graph import graph_of
from snapgen_deploy.export.lint.rule import Subject
from snapgen_deploy.export.mil.saved.program import Function, Operation, Package, Value
from snapgen_deploy.export.mil.saved.types import ValueType, dtype_named

APPLIED = ("empty-tensor", "argmax", "buffer-over-4gib")


def findings(graph: Any, name: str) -> tuple[Finding, ...]:
    """What the rules of `APPLIED` say of a function; () when it keeps them. Weights count as its constants."""
    function = _function(graph, name)
    subject = Subject(Package({name: function}, {}, name, 0), (graph_of(function),), 0, None)
    return tuple(found for rule in APPLIED if (found := RULES[rule].apply(subject)) is not None)


def _function(graph: Any, name: str) -> Function:
    """The function as the lint reads one: operations and the types of their values, by numbers for names."""
    names: dict[Any, str] = {}

    def value(result: Any) -> Value | None:
        names[result] = f"{len(names)}"
        if not hasattr(result.type, "shape"):
            return None
        kind = dtype_named(dtype(result.type))
        return None if kind is None else Value(names[result], ValueType(kind, tuple(result.type.shape)))

    def values(results: Any) -> tuple[Value, ...]:
        return tuple(v for v in map(value, results) if v is not None)

    inputs = values(graph.regions[0].blocks[0].arguments)
    found: list[Operation] = []
    outputs: tuple[str, ...] = ()
    for place, op in enumerate(operations(graph)):
        taken = tuple(names[operand] for operand in op.operands if operand in names)
        if short(op.name) == RETURN:
            outputs = taken
            continue
        kind = "const" if short(op.name) == CONSTANT else short(op.name)
        made = values(op.results)
        found.append(Operation(kind, made[0].name if made else str(place), place, {"operands": taken}, made))
    return Function(name, 0, inputs, tuple(found), outputs)
