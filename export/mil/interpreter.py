"""Turns a function into a list of steps once, then runs it any number of times.

Preparing decodes every constant in the form its operation wants and evaluates the constexpr operations; running only looks up
slots. A value is let go after the step that uses it last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import snapgen_deploy.export.mil.ops  # noqa: F401  (fills the table)
from snapgen_deploy.export.mil.ops.registry import OPS, Form, Op
from snapgen_deploy.export.mil.precision import Precision
from snapgen_deploy.export.mil.saved.errors import OpError
from snapgen_deploy.export.mil.saved.program import Constant, Data, Function, Operation, Value
from snapgen_deploy.export.mil.saved.types import to_held
from snapgen_deploy.export.mil.trace import Trace

_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, KeyError, NotImplementedError, ArithmeticError)


@dataclass(frozen=True)
class _Late:
    """A parameter known only at run time: the slots it reads and how each becomes what the operation wants."""

    name: str
    slots: tuple[int, ...]
    form: Form
    before: tuple[Any, ...]  # per slot: a constant's value where the binding is constant (slot -1)


@dataclass(frozen=True)
class _Step:
    operation: Operation
    run: Callable[..., Any]
    fixed: Mapping[str, Any]
    plain: tuple[tuple[str, int], ...]  # tensor parameters taken as they are
    late: tuple[_Late, ...]
    outputs: tuple[int, ...]
    rounds: tuple[bool, ...]  # per output: whether it is stored in half precision
    frees: tuple[int, ...]


class Plan:
    """A function ready to run."""

    def __init__(self, function: Function, precision: Precision) -> None:
        self.function, self._precision = function, precision
        self._slots: dict[str, int] = {}
        self.warnings: dict[str, str] = {}  # operation -> what it had to say first
        self._constants: dict[str, _Decoded] = {}
        for value in function.inputs:
            self._slots[value.name] = len(self._slots)
        unknown = sorted({o.type for o in function.operations if o.type != "const" and o.type not in OPS})
        if unknown:
            first = next(o for o in function.operations if o.type == unknown[0])
            rest = f"; also lacking: {', '.join(unknown[1:])}" if unknown[1:] else ""
            raise OpError(f"{first.where}: this operation is not supported in function {function.name!r}{rest}")
        steps = [s for o in function.operations for s in self._prepare(o)]
        self._steps = _with_frees(steps, self._kept())
        self._results = [(name, self._slots.get(name), self._constants.get(name)) for name in function.outputs]
        self._constants = {name: c for name, _, c in self._results if c is not None}
        self.watcher: Callable[[str, Tensor], None] | None = None  # hears every value made at run time, by its name
        self.trace: Trace | None = None

    def _kept(self) -> set[int]:
        """Slots that outlive the run: results and states."""
        states = {self._slots[v.name] for v in self.function.inputs if v.type.kind == "state"}
        return states | {self._slots[n] for n in self.function.outputs if n in self._slots}

    def _prepare(self, operation: Operation) -> list[_Step]:
        if operation.type == "const":
            (value,) = operation.inputs["val"]
            assert isinstance(value, Constant)
            self._constants[operation.outputs[0].name] = _Decoded(value)
            return []
        op = OPS[operation.type]
        try:
            step = self._step(operation, op)
        except _FAILURES as error:
            raise OpError(f"{operation.where}: {_line(error)}") from error
        if operation.type.startswith("constexpr_"):
            self._fold(operation, step)
            return []
        return [step]

    def _step(self, operation: Operation, op: Op) -> _Step:
        unknown = sorted(set(operation.inputs) - set(op.forms))
        missing = sorted(op.required - set(operation.inputs))
        if unknown or missing:
            raise ValueError(f"parameters not supported: {unknown}, missing: {missing}")
        fixed: dict[str, Any] = {name: self._context(name, operation) for name in op.context}
        plain: list[tuple[str, int]] = []
        late: list[_Late] = []
        for name, bindings in operation.inputs.items():
            form = op.forms[name]
            if len(bindings) != 1 and not form.several:
                raise ValueError(f"parameter {name} takes one value, got {len(bindings)}")
            ready = [self._constant(b, form) for b in bindings]
            slots = tuple(-1 if r is not None else self._slot(str(b)) for r, b in zip(ready, bindings, strict=True))
            if all(s < 0 for s in slots):
                fixed[name] = tuple(v for r in ready for v in r) if form.several else ready[0]
            elif form.runtime is None:
                raise ValueError(f"parameter {name} must be constant")
            elif form.as_is:
                plain.append((name, slots[0]))
            else:
                late.append(_Late(name, slots, form, tuple(ready)))
        outputs = self._outputs(operation)
        rounds = tuple(v.type.dtype.name == "fp16" and not op.moves for v in operation.outputs)
        return _Step(operation, op.run, fixed, tuple(plain), tuple(late), outputs, rounds, ())

    def _outputs(self, operation: Operation) -> tuple[int, ...]:
        if operation.type == "write_state":  # its result replaces the state's contents
            (state,) = operation.inputs["input"]
            return (self._slot(str(state)),)
        slots = []
        for value in operation.outputs:
            self._slots[value.name] = len(self._slots)
            slots.append(self._slots[value.name])
        return tuple(slots)

    def _context(self, name: str, operation: Operation) -> Any:
        if name == "opset":
            return self.function.opset
        if name == "warn":
            return partial(self._warn, operation.where)
        return tuple(v.type for v in operation.outputs)

    def _warn(self, where: str, text: str) -> None:
        self.warnings.setdefault(where, text)

    def _slot(self, name: str) -> int:
        if name not in self._slots:
            raise ValueError(f"value {name!r} is used before it is made")
        return self._slots[name]

    def _constant(self, binding: str | Constant, form: Form) -> Any:
        """The value of a constant binding in its parameter's form, or None for a value made at run time."""
        if isinstance(binding, Constant):
            return _Decoded(binding).as_form(form)
        known = self._constants.get(binding)
        return None if known is None else known.as_form(form)

    def _fold(self, operation: Operation, step: _Step) -> None:
        """Evaluate a constexpr operation now; its results are constants."""
        try:
            results = step.run(**step.fixed)
        except _FAILURES as error:
            raise OpError(f"{operation.where}: {_line(error)}") from error
        arrays = results if isinstance(results, tuple) else (results,)
        for value, array, rounds in zip(operation.outputs, arrays, step.rounds, strict=True):
            if rounds:
                tensor = to_held(array, value.type.dtype)
                stored = self._precision.settle(tensor, operation.type, value.name, operation.place)
                array = stored.numpy()
            _check(operation, value, tuple(array.shape))
            self._constants[value.name] = _Decoded(Constant(value.type, _returning(array)))
            del self._slots[value.name]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Results by name; states come back under their names too. `inputs` has every input of the function."""
        env: list[Any] = [None] * len(self._slots)
        for value in self.function.inputs:
            x = inputs[value.name]
            if value.type.dtype.name == "fp16" and value.type.kind == "tensor":
                x = self._precision.settle(x, "input", value.name, -1)
            env[self._slots[value.name]] = x
            if self.watcher is not None:
                self.watcher(value.name, x)
            if self.trace is not None:
                self.trace.note_input(value.name, x)
        with torch.inference_mode():
            for step in self._steps:
                self._run_step(step, env)
        results = {}
        for name, slot, constant in self._results:
            results[name] = env[slot] if slot is not None else constant.held()  # type: ignore[union-attr]
        for value in self.function.inputs:
            if value.type.kind == "state":
                results[value.name] = env[self._slots[value.name]]
        return results

    def _run_step(self, step: _Step, env: list[Any]) -> None:
        operation = step.operation
        arguments = dict(step.fixed)
        for name, slot in step.plain:
            arguments[name] = env[slot]
        for late in step.late:
            arguments[late.name] = _gather(late, env)
        try:
            made = step.run(**arguments)
        except _FAILURES as error:
            raise OpError(f"{operation.where}: {_line(error)}") from error
        del arguments
        results = made if isinstance(made, tuple) else (made,)
        for slot, result, rounds, value in zip(step.outputs, results, step.rounds, operation.outputs, strict=False):
            if result.dtype != value.type.dtype.held:
                result = result.to(value.type.dtype.held)
            if rounds:
                finite = partial(_all_finite, step, env)
                result = self._precision.settle(result, operation.type, value.name, operation.place, finite)
            _check(operation, value, tuple(result.shape))
            if self.trace is not None:
                self.trace.note(operation, value.name, result, _given(step, env))
            env[slot] = result
            if self.watcher is not None:
                self.watcher(value.name, result)
        if not operation.outputs:  # write_state
            env[step.outputs[0]] = results[0]
        elif len(results) != len(step.outputs):
            raise OpError(f"{operation.where}: made {len(results)} results, the program declares {len(step.outputs)}")
        for slot in step.frees:
            env[slot] = None


def _all_finite(step: _Step, env: list[Any]) -> bool:
    """Whether no number that a step was given is infinite or NaN."""
    flat = (x for _, one, _ in _given(step, env) for x in (one if isinstance(one, list | tuple) else (one,)))
    return all(bool(torch.isfinite(torch.as_tensor(x)).all()) for x in flat if isinstance(x, Tensor | np.ndarray | float))


def _given(step: _Step, env: list[Any]) -> Iterator[tuple[str, Any, bool]]:
    """Parameter, value, and whether it is a constant, for all that a step was given."""
    yield from ((name, value, True) for name, value in step.fixed.items())
    yield from ((name, env[slot], False) for name, slot in step.plain)
    yield from ((late.name, _gather(late, env), False) for late in step.late)


class _Decoded:
    """A constant and the forms it was asked for; the file is read again only for a new form."""

    def __init__(self, constant: Constant) -> None:
        self._constant = constant
        self._made: dict[Form, Any] = {}

    def as_form(self, form: Form) -> Any:
        if form not in self._made:
            self._made[form] = form.constant(self._constant.read(), self._constant)
        return self._made[form]

    def held(self) -> Tensor:
        data = self._constant.read()
        if not isinstance(data, np.ndarray):
            raise OpError(f"a constant {data!r} is no tensor and cannot be a result")
        return to_held(data, self._constant.type.dtype)


def _gather(late: _Late, env: list[Any]) -> Any:
    convert = late.form.runtime
    assert convert is not None
    if not late.form.several:
        return convert(env[late.slots[0]])
    values: list[Any] = []
    for slot, constant in zip(late.slots, late.before, strict=True):
        values.extend(constant if slot < 0 else convert(env[slot]))
    return tuple(values)


def _returning(array: np.ndarray) -> Callable[[], Data]:
    return lambda: array


def _line(error: BaseException) -> str:
    """First line of a message: what torch adds after it is about its own source code."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _check(operation: Operation, value: Value, shape: tuple[int, ...]) -> None:
    if not value.type.admits(shape):
        raise OpError(f"{operation.where}: {value.name!r} came out as {list(shape)}, the program declares {value.type}")


def _with_frees(steps: list[_Step], kept: set[int]) -> list[_Step]:
    """The same steps, each with the slots that nothing after it reads."""
    seen = set(kept)
    finished = []
    for step in reversed(steps):
        touched = {s for _, s in step.plain} | {s for late in step.late for s in late.slots if s >= 0} | set(step.outputs)
        frees = tuple(sorted(touched - seen))
        seen |= touched
        finished.append(_Step(step.operation, step.run, step.fixed, step.plain, step.late, step.outputs, step.rounds, frees))
    return finished[::-1]
