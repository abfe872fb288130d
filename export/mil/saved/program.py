"""A saved program as plain data: functions, operations, bindings. What `reader` makes and `interpreter` executes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from snapgen_deploy.export.mil.saved.types import ValueType

Scalar = bool | int | float | str
Data = np.ndarray | str | tuple[Scalar, ...]


@dataclass(frozen=True)
class Constant:
    """A value written in the program or in its weight file; `read` decodes it (sub-byte integers are unpacked)."""

    type: ValueType
    read: Callable[[], Data] = field(repr=False)


Binding = str | Constant
"""What an operation's parameter is bound to: the name of a value, or a literal."""


@dataclass(frozen=True)
class Value:
    """A named, typed value."""

    name: str
    type: ValueType


@dataclass(frozen=True)
class Operation:
    """One operation. `place` is its position in its function, blocks within counted, for messages."""

    type: str
    name: str
    place: int
    inputs: Mapping[str, tuple[Binding, ...]]
    outputs: tuple[Value, ...]
    blocks: tuple[Block, ...] = ()  # of cond (true, false) and while_loop (condition, body)

    @property
    def where(self) -> str:
        """Operation, output and place, as every message about it starts."""
        outputs = ", ".join(v.name for v in self.outputs) or "none"
        return f"op {self.type} (name {self.name!r}, output {outputs}, number {self.place} of its function)"


@dataclass(frozen=True)
class Block:
    """Operations that an operation of control flow runs; they see the values made before it."""

    inputs: tuple[Value, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Function:
    """One entry point. `opset` is the iOS generation: 5 for iOS 15 ... 8 for iOS 18."""

    name: str
    opset: int
    inputs: tuple[Value, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]

    def every_operation(self) -> Iterator[Operation]:
        """All operations, those of blocks after the one that they belong to."""
        return _every(self.operations)


def _every(operations: Iterable[Operation]) -> Iterator[Operation]:
    for operation in operations:
        yield operation
        for block in operation.blocks:
            yield from _every(block.operations)


@dataclass(frozen=True)
class PackagePort:
    """One input or output as an app sees it; a "label" is a classifier's answer, "classes" are all its probabilities.

    `shape` is the default shape (an image: (height, width)); `shapes` are the admissible ones where they are enumerated;
    `ranges` are inclusive bounds per axis, upper None meaning unbounded, where sizes are free within limits.
    """

    name: str
    kind: Literal["tensor", "image", "state", "label", "classes"]
    dtype: str  # "float32", "float16", "int32", "int8", "float64"; an image's colour layout; a label's "string" or "int64"
    shape: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()
    optional: bool = False
    default: float | None = None
    doc: str = ""


@dataclass(frozen=True)
class Interface:
    """What one function takes and gives."""

    inputs: tuple[PackagePort, ...]
    outputs: tuple[PackagePort, ...]
    states: tuple[PackagePort, ...] = ()


@dataclass(frozen=True)
class Package:
    """A model package."""

    functions: Mapping[str, Function]
    interfaces: Mapping[str, Interface]
    default: str
    specification: int
