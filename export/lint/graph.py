"""One function of a saved program as a graph: producers and consumers of values, and constants."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from snapgen_deploy.export.mil.saved.program import Constant, Data, Function, Operation
from snapgen_deploy.export.mil.saved.types import ValueType

ROW_ALIGNMENT = 64
"""Bytes to which the Neural Engine pads the last axis of a tensor.
Source: https://machinelearning.apple.com/research/neural-engine-transformers"""

LAYOUT = frozenset({"transpose", "reshape", "reshape_like", "expand_dims", "squeeze", "identity"})
"""Operations that move elements and change none."""

VIEWS = LAYOUT - {"transpose"}
"""Operations whose output can share its input's memory."""


@dataclass(frozen=True)
class Graph:
    """Built by `graph_of`. Constants and weight decompressions (`const`, `constexpr_*`) are not among `operations`: `constants`
    are all literals with the operation that holds them, `stored` the types of the values that they make, `fixed` the `const`
    ones by name. `types` are those of the values that exist at run time."""

    function: Function
    operations: tuple[Operation, ...]
    constants: tuple[tuple[Operation, Constant], ...]
    producers: Mapping[str, Operation]
    consumers: Mapping[str, tuple[Operation, ...]]
    types: Mapping[str, ValueType]
    stored: Mapping[str, ValueType]
    fixed: Mapping[str, Constant]

    def parameter(self, op: Operation, name: str) -> Data | None:
        """Value of a parameter that is written in the file, through its `const` where it has one; else None."""
        for bound in op.inputs.get(name, ()):
            constant = self.fixed.get(bound) if isinstance(bound, str) else bound
            if constant is not None:
                return constant.read()
        return None

    def inputs(self, op: Operation) -> tuple[str, ...]:
        """Names of the values that reach an operation at run time, each once."""
        names = (b for bindings in op.inputs.values() for b in bindings if isinstance(b, str))
        return tuple(dict.fromkeys(n for n in names if n in self.types))

    def weights(self) -> dict[str, ValueType]:
        """Constants as the operations take them, after decompression, by name."""
        taken = {b for op in self.operations for bindings in op.inputs.values() for b in bindings if isinstance(b, str)}
        return {name: type_ for name, type_ in self.stored.items() if name in taken}

    def before(self, op: Operation) -> Iterator[Operation]:
        """Operations that make this operation's inputs."""
        for name in self.inputs(op):
            if name in self.producers:
                yield self.producers[name]

    def after(self, op: Operation) -> Iterator[Operation]:
        """Operations that take this operation's outputs."""
        for value in op.outputs:
            yield from self.consumers.get(value.name, ())


def is_stored(op: Operation) -> bool:
    """Whether an operation's output is stored in the file rather than computed from the inputs."""
    return op.type == "const" or op.type.startswith("constexpr_")


def graph_of(function: Function) -> Graph:
    """Index one function, operations of blocks among the others."""
    every = tuple(function.every_operation())
    operations = tuple(op for op in every if not is_stored(op))
    constants = tuple((op, b) for op in every for bs in op.inputs.values() for b in bs if isinstance(b, Constant))
    consumers: dict[str, list[Operation]] = {}
    for op in every:
        for name in (b for bindings in op.inputs.values() for b in bindings if isinstance(b, str)):
            consumers.setdefault(name, []).append(op)
    made = (v for op in operations for v in (*op.outputs, *(v for block in op.blocks for v in block.inputs)))
    types = {v.name: v.type for v in (*function.inputs, *made)}
    return Graph(
        function,
        operations,
        constants,
        {v.name: op for op in operations for v in op.outputs},
        {name: tuple(ops) for name, ops in consumers.items()},
        types,
        {v.name: v.type for op in every if is_stored(op) for v in op.outputs},
        {op.outputs[0].name: constant for op, constant in constants if op.type == "const" and op.outputs},
    )


def sizes(type_: ValueType) -> tuple[int, ...] | None:
    """The shape if every axis is fixed, else None."""
    if type_.shape is None:
        return None
    fixed = tuple(n for n in type_.shape if n is not None)
    return fixed if len(fixed) == len(type_.shape) else None


def row_bytes(type_: ValueType, shape: tuple[int, ...]) -> int:
    """Bytes of the last axis."""
    return shape[-1] * max(type_.dtype.bits, 8) // 8 if shape else max(type_.dtype.bits, 8) // 8


def elements(type_: ValueType) -> int:
    """Of a tensor; 0 where a size is not known."""
    shape = sizes(type_)
    return math.prod(shape) if shape is not None else 0


def plain_bytes(type_: ValueType) -> int:
    """Bytes of a tensor without padding; 0 where a size is not known."""
    return elements(type_) * type_.dtype.bits // 8


def padded_bytes(type_: ValueType) -> int:
    """Bytes of a tensor whose last axis is padded to ROW_ALIGNMENT; 0 where a size is not known."""
    shape = sizes(type_)
    if shape is None:
        return 0
    return math.prod(shape[:-1]) * -(-row_bytes(type_, shape) // ROW_ALIGNMENT) * ROW_ALIGNMENT
