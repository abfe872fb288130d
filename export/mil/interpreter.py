"""Turns a function into a list of steps once, then runs it any number of times.

Preparing decodes every constant in the form that its operation needs and evaluates the constexpr operations; running only looks
up slots. A value is freed after the step that uses it last. Where all constants together would take more than `MOST_KEPT`, the
rest are decoded whenever they are used, and dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

import snapgen_deploy.export.mil.ops  # noqa: F401  (fills the table)
from snapgen_deploy.export.mil.ops.registry import OPS, Form, Op
from snapgen_deploy.export.mil.precision import NamedResult, Precision
from snapgen_deploy.export.mil.saved.errors import OpError
from snapgen_deploy.export.mil.saved.program import Block, Constant, Data, Function, Operation, Value
from snapgen_deploy.export.mil.saved.types import ValueType, to_held
from snapgen_deploy.export.mil.steps import AnyStep, Body, Control, Decoded, Env, Late, Step, Unkept, ValueSource, with_frees
from snapgen_deploy.export.mil.trace import Trace
from snapgen_deploy.system.documents import several
from snapgen_deploy.system.quiet import first_line

_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, KeyError, NotImplementedError, ArithmeticError)
CONTROL = {"cond": "pred", "while_loop": "loop_vars"}
"""Operations with blocks, and the parameter that each is given."""
MOST_KEPT = 4_000_000_000  # bytes of real constants, which are held in fp32
_SMALL = 1 << 20  # bytes of a constant that is always kept


class Plan:
    """A function ready to run."""

    def __init__(self, function: Function, precision: Precision) -> None:
        self.function, self._precision = function, precision
        self._slots: dict[str, int] = {}
        self._count = 0
        self._kept_bytes = 0
        self.warnings: dict[str, str] = {}  # operation -> its first warning
        self._constants: dict[str, Decoded] = {}
        for value in function.inputs:
            self._new_slot(value.name)
        self._refuse_unknown()
        steps = [s for o in function.operations for s in self._prepare(o)]
        self._steps = with_frees(steps, self._kept())
        self._results = [(name, self._source(name)) for name in function.outputs]
        self._constants = {}
        self.watcher: Callable[[str, Tensor], None] | None = (
            None  # called with the name and value of every value made at run time
        )
        self.trace: Trace | None = None

    def _refuse_unknown(self) -> None:
        known = OPS.keys() | CONTROL.keys() | {"const"}
        unknown = [o for o in self.function.every_operation() if o.type not in known]
        if unknown:
            first = min(unknown, key=lambda o: o.type)
            rest = sorted({o.type for o in unknown} - {first.type})
            raise OpError(
                f"{first.where}: this operation is not supported in function {self.function.name!r}"
                + (f"; also lacking: {several(rest)}" if rest else "")
            )

    def _kept(self) -> set[int]:
        """Slots that outlive the run: results and states."""
        states = {self._slots[v.name] for v in self.function.inputs if v.type.kind == "state"}
        return states | {self._slots[n] for n in self.function.outputs if n in self._slots}

    def _prepare(self, operation: Operation) -> list[AnyStep]:
        if operation.type == "const":
            (value,) = operation.inputs["val"]
            assert isinstance(value, Constant)
            self._constants[operation.outputs[0].name] = Decoded(value, kept=self._keeps(value.type))
            return []
        try:
            if operation.type in CONTROL:
                return [self._control(operation)]
            folds = operation.type.startswith("constexpr_")
            kept = not folds or all(self._keeps(value.type) for value in operation.outputs)
            step = self._step(operation, OPS[operation.type], kept)
        except _FAILURES as error:
            raise OpError(f"{operation.where}: {first_line(error)}") from error
        if folds:
            self._fold(operation, step, kept)
            return []
        return [step]

    def _step(self, operation: Operation, op: Op, kept: bool) -> Step:
        """The operation, ready to run; its constants are decoded now if they are `kept`."""
        unknown = sorted(set(operation.inputs) - set(op.forms))
        missing = sorted(op.required - set(operation.inputs))
        if unknown or missing:
            raise ValueError(f"parameters not supported: {unknown}, missing: {missing}")
        fixed: dict[str, Any] = {name: self._context(name, operation) for name in op.context}
        plain: list[tuple[str, int]] = []
        late: list[Late] = []
        unkept: list[Unkept] = []
        for name, bindings in operation.inputs.items():
            form = op.forms[name]
            if len(bindings) != 1 and not form.several:
                raise ValueError(f"parameter {name} takes one value, got {len(bindings)}")
            if not form.several and (large := self._unkept(bindings[0], kept)) is not None:
                unkept.append(Unkept(name, large, form))
                continue
            ready = [self._constant(b, form) for b in bindings]
            slots = tuple(-1 if r is not None else self._slot(str(b)) for r, b in zip(ready, bindings, strict=True))
            if all(s < 0 for s in slots):
                fixed[name] = tuple(v for r in ready for v in r) if form.several else ready[0]
            elif form.runtime is None:
                raise ValueError(f"parameter {name} must be constant")
            elif form.as_is:
                plain.append((name, slots[0]))
            else:
                late.append(Late(name, slots, form, tuple(ready)))
        outputs = self._outputs(operation)
        rounds = tuple(v.type.dtype.name == "fp16" and not op.moves for v in operation.outputs)
        return Step(operation, op.run, fixed, tuple(plain), tuple(late), tuple(unkept), outputs, rounds)

    def _control(self, operation: Operation) -> Control:
        if len(operation.blocks) != 2:
            raise ValueError(f"expected two blocks, got {len(operation.blocks)}")
        given = tuple(self._source(b) for b in operation.inputs[CONTROL[operation.type]])
        bodies = tuple(self._body(block) for block in operation.blocks)
        return Control(operation, given, bodies, self._outputs(operation))

    def _body(self, block: Block) -> Body:
        """A block's steps. Its own names end with it; slots from before it are not freed within it."""
        outside, constants = dict(self._slots), dict(self._constants)
        before = set(range(self._count))
        inputs = tuple(self._new_slot(value.name) for value in block.inputs)
        steps = [s for o in block.operations for s in self._prepare(o)]
        results = tuple(self._source(name) for name in block.outputs)
        self._slots, self._constants = outside, constants
        return Body(inputs, with_frees(steps, before | {r.slot for r in results}), results)

    def _outputs(self, operation: Operation) -> tuple[int, ...]:
        if operation.type == "write_state":  # its result replaces the state's contents
            (state,) = operation.inputs["input"]
            return (self._slot(str(state)),)
        return tuple(self._new_slot(value.name) for value in operation.outputs)

    def _context(self, name: str, operation: Operation) -> Any:
        if name == "opset":
            return self.function.opset
        if name == "warn":
            return partial(self._warn, operation.where)
        return tuple(v.type for v in operation.outputs)

    def _warn(self, where: str, text: str) -> None:
        self.warnings.setdefault(where, text)

    def _new_slot(self, name: str) -> int:
        self._slots[name] = self._count
        self._count += 1
        return self._slots[name]

    def _slot(self, name: str) -> int:
        if name not in self._slots:
            raise ValueError(f"value {name!r} is used before it is made")
        return self._slots[name]

    def _source(self, binding: str | Constant) -> ValueSource:
        if isinstance(binding, Constant):
            return ValueSource(-1, Decoded(binding))
        known = self._constants.get(binding)
        return ValueSource(self._slot(binding)) if known is None else ValueSource(-1, known)

    def _constant(self, binding: str | Constant, form: Form) -> Any:
        """The value of a constant binding in its parameter's form, or None for a value made at run time."""
        if isinstance(binding, Constant):
            return Decoded(binding).as_form(form)
        known = self._constants.get(binding)
        return None if known is None else known.as_form(form)

    def _keeps(self, kind: ValueType) -> bool:
        """Whether there is room to keep a constant of this type; it is counted."""
        size = 4 * prod(n or 1 for n in kind.shape or ()) if kind.dtype.floating else 0
        self._kept_bytes += size
        return size <= _SMALL or self._kept_bytes <= MOST_KEPT

    def _unkept(self, binding: str | Constant, kept: bool) -> Decoded | None:
        """The constant of a binding, if it is one that is not kept, or any of an operation whose results are not `kept`."""
        if isinstance(binding, Constant):
            return None if kept else Decoded(binding, kept=False)
        known = self._constants.get(binding)
        return known if known is not None and not (known.kept and kept) else None

    def _fold(self, operation: Operation, step: Step, kept: bool) -> None:
        """Make constants of a constexpr operation's results: evaluated now or, if there is no room for them, when used."""
        arrays = self._evaluated(operation, step) if kept else None
        for index, value in enumerate(operation.outputs):
            read = partial(self._evaluated_at, operation, step, index) if arrays is None else _returning(arrays[index])
            self._constants[value.name] = Decoded(Constant(value.type, read), kept=kept)
            del self._slots[value.name]

    def _evaluated_at(self, operation: Operation, step: Step, index: int) -> np.ndarray:
        return self._evaluated(operation, step)[index]

    def _evaluated(self, operation: Operation, step: Step) -> list[np.ndarray]:
        """Results of a constexpr operation."""
        try:
            results = step.run(**step.fixed, **{constant.name: constant.value() for constant in step.unkept})
        except _FAILURES as error:
            raise OpError(f"{operation.where}: {first_line(error)}") from error
        arrays = list(results) if isinstance(results, tuple) else [results]
        for index, (value, array, rounds) in enumerate(zip(operation.outputs, arrays, step.rounds, strict=True)):
            if rounds:
                tensor = to_held(array, value.type.dtype)
                stored = self._precision.settle(tensor, NamedResult(operation.type, value.name, operation.place))
                arrays[index] = stored.numpy()
            _check(operation, value, tuple(arrays[index].shape))
        return arrays

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Results by name; states come back under their names too. `inputs` has every input of the function."""
        env: Env = [None] * self._count
        for value in self.function.inputs:
            x = inputs[value.name]
            if value.type.dtype.name == "fp16" and value.type.kind == "tensor":
                x = self._precision.settle(x, NamedResult("input", value.name, -1))
            env[self._slots[value.name]] = x
            if self.watcher is not None:
                self.watcher(value.name, x)
            if self.trace is not None:
                self.trace.record_input(value.name, x)
        with torch.inference_mode():
            self._run_all(self._steps, env)
        results = {name: source.value(env) for name, source in self._results}
        for value in self.function.inputs:
            if value.type.kind == "state":
                results[value.name] = env[self._slots[value.name]]
        return results

    def _run_all(self, steps: Iterable[AnyStep], env: Env) -> None:
        for step in steps:
            if isinstance(step, Step):
                self._run_step(step, env)
            else:
                self._run_control(step, env)
            for slot in step.frees:
                env[slot] = None

    def _run_step(self, step: Step, env: Env) -> None:
        operation = step.operation
        arguments = dict(step.fixed)
        for name, slot in step.plain:
            arguments[name] = env[slot]
        for late in step.late:
            arguments[late.name] = late.gather(env)
        for constant in step.unkept:
            arguments[constant.name] = constant.value()
        try:
            made = step.run(**arguments)
        except _FAILURES as error:
            raise OpError(f"{operation.where}: {first_line(error)}") from error
        results = made if isinstance(made, tuple) else (made,)
        shared = len(results) > 1 or not any(step.rounds) or _shares_memory(results[0], arguments.values())
        del arguments
        if len(results) != len(step.outputs):
            raise OpError(f"{operation.where}: made {len(results)} results, the program declares {len(step.outputs)}")
        if not operation.outputs:  # write_state
            env[step.outputs[0]] = results[0]
            return
        for slot, result, rounds, value in zip(step.outputs, results, step.rounds, operation.outputs, strict=True):
            if isinstance(result, Tensor):
                which = NamedResult(operation.type, value.name, operation.place, shared) if rounds else None
                result = self._settled(step, result, which, value, env)
            env[slot] = result

    def _settled(self, step: Step, result: Tensor, made: NamedResult | None, value: Value, env: Env) -> Tensor:
        """A result as it is stored: converted to the declared type, checked, and passed to the trace and the watcher.

        `made` is None if its operation only moves values, which are stored already.
        """
        operation = step.operation
        if result.dtype != value.type.dtype.held:
            result = result.to(value.type.dtype.held)
        if made is not None:
            result = self._precision.settle(result, made, partial(step.given_finite, env))
        _check(operation, value, tuple(result.shape))
        if self.trace is not None:
            self.trace.record(operation, value.name, result, step.given(env))
        if self.watcher is not None:
            self.watcher(value.name, result)
        return result

    def _run_control(self, step: Control, env: Env) -> None:
        values = [source.value(env) for source in step.given]
        first, second = step.bodies
        if step.operation.type == "cond":
            values = self._enter(first if self._true(step, values) else second, (), env)
        else:
            while self._true(step, self._enter(first, values, env)):
                values = self._enter(second, values, env)
        for slot, result, value in zip(step.outputs, values, step.operation.outputs, strict=True):
            _check(step.operation, value, tuple(result.shape))
            env[slot] = result
            if self.watcher is not None:
                self.watcher(value.name, result)

    def _enter(self, body: Body, values: Sequence[Any], env: Env) -> list[Any]:
        for slot, value in zip(body.inputs, values, strict=True):
            env[slot] = value
        self._run_all(body.steps, env)
        return [source.value(env) for source in body.results]

    def _true(self, step: Control, values: Sequence[Tensor]) -> bool:
        if len(values) != 1 or values[0].numel() != 1:
            raise OpError(f"{step.operation.where}: its condition is not one value, got {[list(v.shape) for v in values]}")
        return bool(values[0])


def _returning(array: np.ndarray) -> Callable[[], Data]:
    return lambda: array


def _shares_memory(result: Any, arguments: Iterable[Any]) -> bool:
    """Whether a result is, or is a view of, one of the arguments or of what they hold."""
    if not isinstance(result, Tensor):
        return True
    own = result.untyped_storage().data_ptr()
    flat = (x for a in arguments for x in (a if isinstance(a, tuple | list) else (a,)))
    return any(isinstance(x, Tensor) and x.untyped_storage().data_ptr() == own for x in flat)


def _check(operation: Operation, value: Value, shape: tuple[int, ...]) -> None:
    if not value.type.admits(shape):
        raise OpError(f"{operation.where}: {value.name!r} came out as {list(shape)}, the program declares {value.type}")
