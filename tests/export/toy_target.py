"""A whole export target in one module: programs of `torch.export` in a file, which PyTorch itself runs.

With one line in `snapgen_deploy.export.registry.TARGETS` it is a target as the others are (`tests/export/test_toy_target.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Arrays, Artifact, Component, Description, Joined, Port, Runner, Weight, average_bits
from snapgen_deploy.export.probe import GraphLayer, Probe, noise
from snapgen_deploy.export.shared.graph import check_inputs, check_offered, parse_options, trace, wrap_errors
from snapgen_deploy.export.spec import Cost, Memory, Runtime, TargetSpec

SPEC = TargetSpec(
    name="toy",
    implementation="tests.export.toy_target:Toy",
    precisions=("fp32", "fp16"),
    layout="token",
    suffix=".pt2",
    one_size="a file holds one program",
    memory=Memory(Cost(600_000_000, 3.0), Cost(600_000_000, 2.0, 3.0)),
    tools=("torch",),
    runtime=Runtime(package="torch", module="torch", shared_process=True),
)
HINTS = typing.get_type_hints
PORTS = "ports.json"  # in the file, beside the program


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options of one export."""

    author: str = ""


class Toy:
    """`.pt2` files, run by PyTorch."""

    def export(
        self, component: Component, variant: str, precision: str, directory: Path, options: Mapping[str, str]
    ) -> Artifact:
        """Write `<role>.pt2` into `directory`."""
        import torch

        from snapgen_deploy.export.shared.half import HalfInside

        check_offered(SPEC.name, (variant, precision), SPEC.variants, SPEC.precisions)
        settings = parse_options(Settings, SPEC.name, options)
        if precision == "fp16":
            component = dataclasses.replace(component, module=HalfInside(component.module).eval())
        path = directory / f"{component.role}{SPEC.suffix}"
        said = {side: [dataclasses.asdict(p) for p in getattr(component, side)] for side in ("inputs", "outputs")}
        with wrap_errors(f"{component.role} -> {SPEC.name}"):
            program = trace(component)
            torch.export.save(program, path, extra_files={PORTS: json.dumps(said | dataclasses.asdict(settings))})
        return Artifact(SPEC.key, component.role, path, (path,))

    def join(self, parts: Mapping[str, Artifact], directory: Path) -> Joined:
        """Always raises BadInput: a file holds one program."""
        raise BadInput(f"{SPEC.name}: {SPEC.one_size}")

    def open(self, path: Path, *, threads: int, entry: str = "") -> Runner:
        """Load with PyTorch."""
        import torch

        torch.set_num_threads(threads)
        program, inputs, outputs = _load(path)
        module = program.module()

        def run(arrays: Mapping[str, np.ndarray]) -> Arrays:
            check_inputs(path.name, inputs, arrays)
            with torch.no_grad():
                values = module(*(torch.from_numpy(np.array(arrays[p.name])) for p in inputs))
            values = values if isinstance(values, tuple) else (values,)
            return {p.name: value.numpy() for p, value in zip(outputs, values, strict=True)}

        return run

    def unavailable(self, variant: str) -> str | None:
        """None: PyTorch is here."""
        return None

    def describe(self, path: Path, entry: str = "") -> Description:
        """Operators and weights of the saved program."""
        program, _, _ = _load(path)
        weights = {
            name: Weight(str(t.dtype).removeprefix("torch."), t.numel(), 8 * t.nbytes) for name, t in program.state_dict.items()
        }
        return Description(
            bytes=path.stat().st_size,
            ops=dict(Counter(str(n.target) for n in program.graph.nodes if n.op == "call_function")),
            weights={name: weight.kind for name, weight in weights.items()},
            average_bits=average_bits(weights.values()),
        )

    def versions(self) -> dict[str, str]:
        """Of the package that wrote the file."""
        import torch

        return {"torch": str(torch.__version__)}

    def probe(self, path: Path, inputs: Arrays | None, entry: str = "") -> Probe | str:
        """The program node by node, with its inputs or noise."""
        program, ports, _ = _load(path)
        return ToyProbe(program, inputs or noise({p.name: (p.shape, p.dtype == "int32") for p in ports}), ports)


class ToyProbe:
    """A program whose nodes are run one after the other."""

    warnings: Sequence[str] = ()

    def __init__(self, program: Any, inputs: Arrays, ports: Sequence[Port]) -> None:
        import torch

        seen: Arrays = {}

        class Hearing(torch.fx.Interpreter):
            def run_node(self, n: torch.fx.Node) -> Any:
                value = super().run_node(n)
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    seen[n.name] = value.float().numpy().copy()
                return value

        module = program.module()
        with torch.no_grad():
            Hearing(module).run(*(torch.from_numpy(np.array(inputs[p.name])) for p in ports))
        self._seen = seen
        self.layers = [
            GraphLayer(n.name, str(n.target), n.name, tuple(i.name for i in n.all_input_nodes if i.name in seen))
            for n in module.graph.nodes
            if n.op == "call_function" and n.name in seen
        ]

    def exact(self, names: Sequence[str]) -> Arrays:
        """The same: an fp32 program is exact."""
        return self.saved(names)

    def saved(self, names: Sequence[str]) -> Arrays:
        """These values as PyTorch computes them."""
        return {name: self._seen[name] for name in names}


@functools.cache
def _hints_of(cls: type, module: str) -> dict[str, Any]:
    return HINTS(cls, globalns=vars(sys.modules[module]))


def _hints(cls: type, globalns: Mapping[str, Any]) -> dict[str, Any]:
    """`typing.get_type_hints` once for a class: torch asks for every object that it reads (two thirds of loading)."""
    return _hints_of(cls, globalns["__name__"])


def _load(path: Path) -> tuple[Any, tuple[Port, ...], tuple[Port, ...]]:
    import torch

    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    files = {PORTS: ""}
    with patch("typing.get_type_hints", _hints):
        program = torch.export.load(path, extra_files=files)
    said = json.loads(files[PORTS])
    inputs, outputs = (
        tuple(Port(p["name"], tuple(p["shape"]), p["dtype"], p["doc"]) for p in said[side]) for side in ("inputs", "outputs")
    )
    return program, inputs, outputs
