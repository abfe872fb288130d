"""Inner values of a Core ML package from our executor: as the phone stores them, and in single precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snapgen_deploy.export.base import Arrays
from snapgen_deploy.export.probe import GraphLayer, noise


@dataclass
class CoreMLProbe:
    """A Core ML package in our executor: as the phone stores it, and in single precision."""

    package: Path
    inputs: Arrays
    entry: str = ""
    threads: int = 1
    layers: Sequence[GraphLayer] = field(init=False)
    warnings: Sequence[str] = ()

    def __post_init__(self) -> None:
        from snapgen_deploy.export.mil.saved.reader import read_package

        package = read_package(self.package)
        operations = [o for o in package.functions[self.entry or package.default].operations if o.type != "const"]
        floating = {v.name for o in operations for v in o.outputs if v.type.dtype.floating and v.type.kind == "tensor"}
        known = floating | set(self.inputs)
        self.layers = [
            GraphLayer(o.name, o.type, o.outputs[0].name, _named(o.inputs, known))
            for o in operations
            if o.outputs and o.outputs[0].name in floating
        ]

    def exact(self, names: Sequence[str]) -> Arrays:
        """These values in single precision, with activations before their quantisation."""
        return self._values("fp32", names)

    def saved(self, names: Sequence[str]) -> Arrays:
        """These values rounded as the phone stores them."""
        return self._values("device", names)

    def _values(self, mode: Any, names: Sequence[str]) -> Arrays:
        from snapgen_deploy.export.mil.runner import open_package

        quantised = mode == "device"
        runner = open_package(self.package, mode=mode, function=self.entry or None, threads=self.threads, activations=quantised)
        wanted, found = set(names), Arrays()

        def collect(name: str, value: Any) -> None:
            if name in wanted:
                found[name] = value.float().numpy().copy()

        runner.watch(collect)
        trace = runner.trace()
        runner(self.inputs)
        self.warnings = (*map(str, trace.beginnings), *runner.warnings())
        return found


def _named(inputs: Mapping[str, tuple[Any, ...]], known: set[str]) -> tuple[str, ...]:
    return tuple(b for bindings in inputs.values() for b in bindings if isinstance(b, str) and b in known)


def noise_inputs(path: Path) -> Arrays:
    """Made-up inputs of a package."""
    from snapgen_deploy.export.mil.runner import open_package

    return noise({p.name: (tuple(p.shape), p.dtype == "int32") for p in open_package(path).inputs})
