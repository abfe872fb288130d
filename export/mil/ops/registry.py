"""The table of operations: `@op("conv")` enters a function whose parameters are named as the operation's MIL inputs.

A parameter's annotation says in what form it wants its value: `Tensor` as it is held, `np.ndarray` as it is stored (constant
operations only), `int`, `float`, `bool`, `str` as a Python value, `tuple[int, ...]` and the like as Python values in order,
`tuple[Tensor, ...]` for inputs that take several values, `tuple[str | int, ...]` for names. A default makes it optional and is
the definition's default.
Three names are not inputs: `declared` receives the declared output types, `opset` the iOS generation (5 is iOS 15), `warn` a
function that takes what the user should hear about the values of this run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, get_args, get_type_hints

import numpy as np
from torch import Tensor

from snapgen_deploy.export.mil.saved.program import Constant, Data
from snapgen_deploy.export.mil.saved.types import to_held

Implementation = Callable[..., Any]
CONTEXT = ("declared", "opset", "warn")
Warn = Callable[[str], None]


@dataclass(frozen=True)
class Form:
    """How a parameter takes its value: from a constant, and from a tensor computed at run time (None: must be constant)."""

    constant: Callable[[Data, Constant], Any]
    runtime: Callable[[Tensor], Any] | None
    several: bool = False  # a tuple, gathered from any number of bindings
    as_is: bool = False  # run-time values are passed on untouched


def _flat(data: Data) -> list[Any]:
    if isinstance(data, np.ndarray):
        values: list[Any] = data.reshape(-1).tolist()
        return values
    return [data] if isinstance(data, str) else list(data)


def _one(data: Data) -> Any:
    values = _flat(data)
    if len(values) != 1:
        raise ValueError(f"expected one value, got {len(values)}")
    return values[0]


def _held(data: Data, constant: Constant) -> Tensor:
    if not isinstance(data, np.ndarray):
        raise TypeError(f"expected a tensor, got {data!r}")
    return to_held(data, constant.type.dtype)


def _stored(data: Data, constant: Constant) -> np.ndarray:
    if not isinstance(data, np.ndarray):
        raise TypeError(f"expected a tensor, got {data!r}")
    return data


_FORMS: Mapping[Any, Form] = {
    Tensor: Form(_held, lambda t: t, as_is=True),
    np.ndarray: Form(_stored, None),
    int: Form(lambda d, _: int(_one(d)), lambda t: int(t.item())),
    float: Form(lambda d, _: float(_one(d)), lambda t: float(t.item())),
    bool: Form(lambda d, _: bool(_one(d)), lambda t: bool(t.item())),
    str: Form(lambda d, _: str(_one(d)), None),
    tuple[int, ...]: Form(lambda d, _: tuple(int(v) for v in _flat(d)), lambda t: tuple(t.reshape(-1).tolist()), True),
    tuple[bool, ...]: Form(lambda d, _: tuple(bool(v) for v in _flat(d)), lambda t: tuple(t.reshape(-1).tolist()), True),
    tuple[str | int, ...]: Form(lambda d, _: tuple(_flat(d)), None),
    tuple[Tensor, ...]: Form(lambda d, c: (_held(d, c),), lambda t: (t,), True),
}


@dataclass(frozen=True)
class Op:
    """One operation: its implementation and the form of each parameter.

    `moves` marks operations that only select, order or repeat values: half-precision rounding cannot change their results.
    """

    name: str
    run: Implementation
    forms: Mapping[str, Form]
    required: frozenset[str]
    context: tuple[str, ...]
    moves: bool


OPS: dict[str, Op] = {}
"""By MIL operation type; filled when `snapgen_deploy.export.mil.ops` is imported."""


def op(*names: str, moves: bool = False) -> Callable[[Implementation], Implementation]:
    """Enter the decorated function as the implementation of the operations called `names`."""

    def enter(run: Implementation) -> Implementation:
        hints = get_type_hints(run)
        parameters = inspect.signature(run).parameters
        forms = {name: _FORMS[_plain(hints[name])] for name in parameters if name not in CONTEXT}
        required = frozenset(n for n in forms if parameters[n].default is inspect.Parameter.empty)
        context = tuple(n for n in parameters if n in CONTEXT)
        for name in names:
            if name in OPS:
                raise ValueError(f"operation {name} is entered twice")
            OPS[name] = Op(name, run, forms, required, context, moves)
        return run

    return enter


def _plain(hint: Any) -> Any:
    """`X | None` -> X."""
    if isinstance(hint, UnionType):
        return next(a for a in get_args(hint) if a is not type(None))
    return hint


def elementwise(functions: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
    """Enter operations of one input `x` that are plain functions of it."""
    for name, function in functions.items():
        op(name)(_unary(function))


def _unary(function: Callable[[Tensor], Tensor]) -> Implementation:
    def run(x: Tensor) -> Tensor:
        return function(x)

    return run
