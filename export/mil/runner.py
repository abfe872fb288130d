"""Opens a saved Core ML package and runs it: the Core ML runtime for machines that have none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from snapgen_deploy.export.mil.interpreter import Plan
from snapgen_deploy.export.mil.ports import Feature, give, take
from snapgen_deploy.export.mil.precision import Mode, Precision, RunReport, precision_for
from snapgen_deploy.export.mil.saved.errors import PackageError
from snapgen_deploy.export.mil.saved.program import Function, Interface, Operation, PackagePort
from snapgen_deploy.export.mil.saved.reader import read_package
from snapgen_deploy.export.mil.trace import Trace
from snapgen_deploy.system.documents import several


@dataclass
class State:
    """Contents of a model's states between calls (`PackageRunner.make_state`)."""

    tensors: dict[str, Tensor]

    def read(self, name: str) -> np.ndarray:
        """A copy of one state."""
        array: np.ndarray = self.tensors[name].numpy().copy()
        return array

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies of all states by name: real ones as float32, which holds them as they are."""
        return {name: self.read(name) for name in self.tensors}


class PackageRunner:
    """One function of a package, callable with named arrays (and pictures for image inputs)."""

    def __init__(self, package: Path, function: Function, interface: Interface, precision: Precision, threads: int) -> None:
        self.package, self.function = package, function.name
        self.inputs: tuple[PackagePort, ...] = interface.inputs
        self.outputs: tuple[PackagePort, ...] = interface.outputs
        self.states: tuple[PackagePort, ...] = interface.states
        self.ops: dict[str, int] = dict(Counter(o.type for o in function.every_operation() if o.type != "const"))
        self._types = {v.name: v for v in function.inputs}
        self._precision, self._threads, self._runs = precision, threads, 0
        with _threads(threads):
            self._plan = Plan(function, precision)

    def __call__(self, inputs: Mapping[str, Feature], state: State | None = None) -> dict[str, np.ndarray]:
        """Named outputs for named inputs.

        Real outputs are float32 in fp32 mode and of the declared type in device mode; image outputs are uint8 pixels. Inputs
        that are optional and have a default may be left out.

        Raises:
            PackageError: if an input is missing, unknown or not as declared.
            OpError: if an operation fails.
        """
        tensors = self._bind(inputs)
        held = state if state is not None else self.make_state()
        tensors.update(held.tensors)
        with _threads(self._threads):
            results = self._plan.run(tensors)
        self._runs += 1
        for port in self.states:
            held.tensors[port.name] = results[port.name]
        exact = self._precision.mode == "fp32"
        return {port.name: give(port, results[port.name], exact=exact) for port in self.outputs}

    def make_state(self) -> State:
        """States of zeros, as Core ML makes them; empty for a model without states."""
        return State({p.name: torch.zeros(p.shape, dtype=self._types[p.name].type.dtype.held) for p in self.states})

    def state_of(self, arrays: Mapping[str, np.ndarray]) -> State:
        """States with these contents, in the form of `State.arrays`.

        Raises:
            PackageError: if they are not the states of the model.
        """
        expected = {port.name: port for port in self.states}
        if set(arrays) != set(expected):
            raise PackageError(f"{self.package}: got states {several(sorted(arrays))}; expected {several(list(expected))}")
        return State({name: take(port, self._types[name], arrays[name]) for name, port in expected.items()})

    def watch(self, on_value: Callable[[str, Tensor], None]) -> None:
        """From now on, call `on_value` with the name and the value of every input and result."""
        self._plan.watcher = on_value

    def trace(self) -> Trace:
        """A record of where NaN and infinity begin, kept from now on."""
        self._plan.trace = self._plan.trace or Trace()
        return self._plan.trace

    def warnings(self) -> tuple[str, ...]:
        """The first warning of each operation since opening, with the operation in front."""
        return tuple(f"{where}: {text}" for where, text in self._plan.warnings.items())

    def report(self) -> RunReport:
        """Statistics of every call since opening; without entries in fp32 mode."""
        return self._precision.report(self._runs)

    def _bind(self, inputs: Mapping[str, Feature]) -> dict[str, Tensor]:
        known = {p.name: p for p in self.inputs}
        unknown = sorted(set(inputs) - set(known))
        missing = [p.name for p in self.inputs if p.name not in inputs and p.default is None]
        if unknown or missing:
            raise PackageError(f"{self.package}: got inputs {several(sorted(inputs))}; expected {several(list(known))}")
        bound = {}
        for name, port in known.items():
            given = inputs.get(name)
            if given is None:
                given = np.full(port.shape, port.default, np.float32)
                if not self._types[name].type.dtype.floating:
                    given = given.astype(np.int32)
            bound[name] = take(port, self._types[name], given)
        return bound


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run with `count` torch threads, then put the process's setting back."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def unquantised(function: Function) -> Function:
    """The function with pairs of `quantize` and `dequantize` of run-time values replaced by `identity`."""
    sources = {o.outputs[0].name: o.inputs["input"] for o in function.every_operation() if o.type == "quantize"}

    def plain(operation: Operation) -> Operation:
        source = operation.inputs["input"][0] if operation.type == "dequantize" else None
        if isinstance(source, str) and source in sources:
            return replace(operation, type="identity", inputs={"x": sources[source]})
        blocks = tuple(replace(b, operations=tuple(map(plain, b.operations))) for b in operation.blocks)
        return replace(operation, blocks=blocks)

    return replace(function, operations=tuple(map(plain, function.operations)))


def open_package(
    path: Path, *, mode: Mode = "fp32", function: str | None = None, threads: int = 1, activations: bool = True
) -> PackageRunner:
    """A runner for `function` (None: the default one) of the .mlpackage at `path`.

    `mode` is "fp32" (is the graph right?) or "device" (fp16 storage, with statistics); `threads` is the number of CPU
    threads; without `activations`, activations are not quantised.

    Raises:
        PackageError: if the package cannot be read, the mode is unknown, or there is no such function.
        OpError: if an operation is not supported; the message names it, its output and its place.
    """
    package = read_package(path)
    name = function or package.default
    if name not in package.interfaces:
        raise PackageError(f"{path}: no function {name!r}; it has {several(sorted(package.interfaces))}")
    if threads < 1:
        raise PackageError(f"threads must be at least 1, got {threads}")
    try:
        precision = precision_for(mode)
    except KeyError as error:
        raise PackageError(f"mode {mode!r} is unknown; expected fp32 or device") from error
    found = package.functions[name] if activations else unquantised(package.functions[name])
    return PackageRunner(path, found, package.interfaces[name], precision, threads)


def functions(path: Path) -> tuple[str, ...]:
    """Names of a package's functions, the default one first."""
    package = read_package(path)
    return (package.default, *sorted(set(package.interfaces) - {package.default}))
