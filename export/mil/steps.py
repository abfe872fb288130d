"""The parts of a plan: steps that run one operation, blocks of steps, and sources of values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snapgen_deploy.export.mil.ops.registry import Form
from snapgen_deploy.export.mil.saved.errors import OpError
from snapgen_deploy.export.mil.saved.program import Constant, Operation
from snapgen_deploy.export.mil.saved.types import to_held

Env = list[Any]
"""Values by slot while a plan runs."""


class Decoded:
    """A constant and the forms it was asked for; the file is read again only for a new form, or always if it is not kept."""

    def __init__(self, constant: Constant, *, kept: bool = True) -> None:
        self._constant, self.kept = constant, kept
        self._made: dict[Form, Any] = {}

    def as_form(self, form: Form) -> Any:
        """The value in a parameter's form."""
        if not self.kept:
            return form.constant(self._constant.read(), self._constant)
        if form not in self._made:
            self._made[form] = form.constant(self._constant.read(), self._constant)
        return self._made[form]

    def held(self) -> Tensor:
        """The tensor as it is held while a program runs."""
        data = self._constant.read()
        if not isinstance(data, np.ndarray):
            raise OpError(f"a constant {data!r} is no tensor and cannot be a result")
        return to_held(data, self._constant.type.dtype)


@dataclass(frozen=True)
class ValueSource:
    """Where a value is found: in a slot, or in the file (slot -1)."""

    slot: int
    constant: Decoded | None = None

    def value(self, env: Env) -> Any:
        """The value as it is held."""
        return env[self.slot] if self.constant is None else self.constant.held()


@dataclass(frozen=True)
class Late:
    """A parameter known only at run time: the slots it reads and how each becomes what the operation wants."""

    name: str
    slots: tuple[int, ...]
    form: Form
    before: tuple[Any, ...]  # per slot: a constant's value where the binding is constant (slot -1)

    def gather(self, env: Env) -> Any:
        """The parameter's value."""
        convert = self.form.runtime
        assert convert is not None
        if not self.form.several:
            return convert(env[self.slots[0]])
        values: list[Any] = []
        for slot, constant in zip(self.slots, self.before, strict=True):
            values.extend(constant if slot < 0 else convert(env[slot]))
        return tuple(values)


@dataclass(frozen=True)
class Unkept:
    """A parameter that is a constant too large to keep: it is read whenever the operation runs."""

    name: str
    constant: Decoded
    form: Form

    def value(self) -> Any:
        """The parameter's value."""
        return self.constant.as_form(self.form)


@dataclass(frozen=True)
class Step:
    """One operation, ready to run."""

    operation: Operation
    run: Callable[..., Any]
    fixed: Mapping[str, Any]
    plain: tuple[tuple[str, int], ...]  # tensor parameters taken as they are
    late: tuple[Late, ...]
    unkept: tuple[Unkept, ...]
    outputs: tuple[int, ...]
    rounds: tuple[bool, ...]  # per output: whether it is stored in half precision
    frees: tuple[int, ...] = ()

    @property
    def touched(self) -> set[int]:
        """Slots that it reads or fills."""
        return {s for _, s in self.plain} | {s for late in self.late for s in late.slots if s >= 0} | set(self.outputs)

    def given(self, env: Env) -> Iterator[tuple[str, Any, bool]]:
        """Parameter, value, and whether it is a constant, for all that it is given."""
        yield from ((name, value, True) for name, value in self.fixed.items())
        yield from ((one.name, one.value(), True) for one in self.unkept)
        yield from ((name, env[slot], False) for name, slot in self.plain)
        yield from ((late.name, late.gather(env), False) for late in self.late)

    def given_finite(self, env: Env) -> bool:
        """Whether no number that it is given is infinite or NaN."""
        flat = (x for _, one, _ in self.given(env) for x in (one if isinstance(one, list | tuple) else (one,)))
        return all(bool(torch.isfinite(torch.as_tensor(x)).all()) for x in flat if isinstance(x, Tensor | np.ndarray | float))


@dataclass(frozen=True)
class Body:
    """A block of a control-flow operation: the slots that its inputs go to, its steps, and where its results are."""

    inputs: tuple[int, ...]
    steps: tuple[AnyStep, ...]
    results: tuple[ValueSource, ...]


@dataclass(frozen=True)
class Control:
    """A `cond` (given its predicate) or a `while_loop` (given its variables), ready to run."""

    operation: Operation
    given: tuple[ValueSource, ...]
    bodies: tuple[Body, ...]
    outputs: tuple[int, ...]
    frees: tuple[int, ...] = ()

    @property
    def touched(self) -> set[int]:
        """Slots that it, or a step within it, reads or fills."""
        inner = {s for body in self.bodies for step in body.steps for s in step.touched}
        ends = {source.slot for body in self.bodies for source in body.results}
        return (
            {s.slot for s in self.given} | inner | ends | {s for b in self.bodies for s in b.inputs} | set(self.outputs)
        ) - {-1}


AnyStep = Step | Control


def with_frees(steps: Sequence[AnyStep], kept: Set[int]) -> tuple[AnyStep, ...]:
    """The same steps, each with the slots that nothing after it reads; those in `kept` stay."""
    seen = set(kept)
    finished: list[AnyStep] = []
    for step in reversed(steps):
        finished.append(replace(step, frees=tuple(sorted(step.touched - seen))))
        seen |= step.touched
    return tuple(finished[::-1])
