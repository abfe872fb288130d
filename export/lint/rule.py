"""A lint rule, and the subject that it checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from snapgen_deploy.export.lint.findings import EXAMPLES, Example, Finding, Severity
from snapgen_deploy.export.lint.graph import Graph
from snapgen_deploy.export.mil.saved.program import Operation, Package, Value


@dataclass(frozen=True)
class Subject:
    """The saved package to check. `memory_limit` is the app's, in bytes; None if it is not known."""

    package: Package
    graphs: tuple[Graph, ...]
    weight_bytes: int
    memory_limit: int | None

    def operations(self) -> Iterator[tuple[Graph, Operation]]:
        """Every operation that computes at run time, of every function."""
        for graph in self.graphs:
            for op in graph.operations:
                yield graph, op

    def activations(self) -> Iterator[tuple[str, Value]]:
        """(operation type, value) for every value that exists at run time: function inputs and operation outputs."""
        for graph in self.graphs:
            for value in graph.function.inputs:
                yield "input", value
            for op in graph.operations:
                for value in op.outputs:
                    yield op.type, value

    def weights(self) -> Iterator[tuple[str, Value]]:
        """("const", value) for every constant as the operations take it, of every function."""
        for graph in self.graphs:
            for name, type_ in graph.weights().items():
                yield "const", Value(name, type_)

    def example(self, op: Operation, note: str = "") -> Example:
        """An operation as an example, named by its first output."""
        if not op.outputs:
            return Example(op.type, op.name, "", note)
        return Example(op.type, op.outputs[0].name, str(op.outputs[0].type), note)


@dataclass(frozen=True)
class Found:
    """The result of a check: all offenders, the most important first, and one sentence."""

    examples: tuple[Example, ...]
    message: str


@dataclass(frozen=True)
class Rule:
    """One rule. `check` returns None if the package keeps it; `sources` say where the rule comes from."""

    id: str
    severity: Severity
    reason: str
    sources: tuple[str, ...]
    fix: str
    check: Callable[[Subject], Found | None]

    def apply(self, subject: Subject) -> Finding | None:
        """The finding, or None if the package keeps the rule."""
        found = self.check(subject)
        return None if found is None else self.finding(found)

    def finding(self, found: Found) -> Finding:
        """What the rule says of what was found."""
        return Finding(
            self.id,
            self.severity,
            len(found.examples),
            found.examples[:EXAMPLES],
            found.message,
            self.reason,
            self.sources,
            self.fix,
        )
