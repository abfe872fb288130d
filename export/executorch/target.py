"""ExecuTorch: `.pte` programs whose graphs run in a delegate, here XNNPACK's.

Other delegates are subclasses: `executorch_coreml`, `executorch_vulkan`.

A `.pte` has positions instead of names. The ports (names, shapes, dtypes, documentation) are therefore stored in the program
itself, as a second method `ports` that returns them as JSON, which an app can call on every platform.

Options of `ExecuTorch.export` (text): `author`, `license`, `version`, all stored in that JSON.
Precisions: `snapgen_deploy.export.executorch.quantise`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import (
    Arrays,
    Artifact,
    Component,
    Description,
    Joined,
    Runner,
    Weight,
    average_bits,
    not_quantised,
    packed,
)
from snapgen_deploy.export.executorch import quantise as executorch_quantise
from snapgen_deploy.export.executorch import weights as executorch_weights
from snapgen_deploy.export.executorch.constants import held_once
from snapgen_deploy.export.executorch.partition import thrifty
from snapgen_deploy.export.executorch.passes import quick_passes
from snapgen_deploy.export.executorch.program import (
    FORWARD,
    LEFT_KEY,
    PORTS,
    StoredDelegate,
    method_of,
    parse_ports,
    portable_constants,
    ports_method_of,
    precision_left,
    read_plan,
    read_program,
)
from snapgen_deploy.export.executorch.spec import XNNPACK
from snapgen_deploy.export.executorch.storage import shared_by_copies, with_own_storage
from snapgen_deploy.export.shared.graph import check_inputs, check_offered, check_rank, parse_options, wrap_errors

if TYPE_CHECKING:
    import torch

_MAX_RANK = 5  # rank 7 lowers without complaint and then fails to load (measured); XNNPACK's own limit is 6


@dataclasses.dataclass(frozen=True)
class ExecuTorchSettings:
    """Options of one export."""

    author: str = ""
    license: str = ""
    version: str = ""


class ExecuTorch:
    """`.pte` files, run by the ExecuTorch runtime with XNNPACK."""

    name: str = XNNPACK.name
    variants: tuple[str, ...] = XNNPACK.variants
    precisions: tuple[str, ...] = XNNPACK.precisions
    suffix: str = XNNPACK.suffix
    backend: str = "XnnpackBackend"  # the delegate's id in a file
    settings: type[ExecuTorchSettings] = ExecuTorchSettings

    def export(
        self, component: Component, variant: str, precision: str, directory: Path, options: Mapping[str, str]
    ) -> Artifact:
        """Write `<role>.pte` into `directory`; nothing is left behind on failure.

        Raises:
            BadInput: if the variant, precision or an option is not offered.
            Refused: if the graph has tensors of rank above `_MAX_RANK`.
            RuntimeError: if torch or ExecuTorch refuse the network; the message is one line.
        """
        check_offered(self.name, (variant, precision), self.variants, self.precisions)
        settings = parse_options(self.settings, self.name, options)
        what = f"{component.role} -> {self.name}:{variant}"
        path = directory / f"{component.role}{self.suffix}"
        with wrap_errors(what), tempfile.TemporaryDirectory(dir=directory) as scratch:
            made = self._lower(component, precision, settings, what, Path(scratch) / path.name)
            os.replace(self._finished(made, component, precision), path)
        return Artifact(f"{self.name}:{variant}", component.role, path, (path,))

    def _traced(self, component: Component, precision: str) -> torch.export.ExportedProgram:
        """The graph at a precision, ready for the delegate."""
        return executorch_quantise.traced(component, executorch_quantise.PRECISIONS[precision])

    def _left(self, component: Component, precision: str) -> str:
        """The precision where its quantiser takes no layer of the component; to be asked before `_traced`."""
        return precision if executorch_quantise.takes_none(component, executorch_quantise.PRECISIONS[precision]) else ""

    def _quantised(self, program: Any, plan: Any, weights: Mapping[str, Weight]) -> bool:
        """Whether a quantiser was at work in a method, or was asked and took nothing."""
        return any(packed(w.kind) for w in weights.values()) or bool(precision_left(program, plan))

    def _partitioner(self, precision: str, settings: ExecuTorchSettings) -> Any:
        """The partitioner that assigns parts of the graph to the delegate."""
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        return XnnpackPartitioner()

    def _lowering(self, component: Component) -> contextlib.AbstractContextManager[None]:
        """The context in which the graph is lowered."""
        return held_once() if component.expendable else contextlib.nullcontext()

    def _finished(self, path: Path, component: Component, precision: str) -> Path:
        """The file to publish, from the lowered one."""
        return path

    def _contents(self, stored: StoredDelegate, index: int) -> executorch_weights.Delegate:
        """The contents of one delegate of a saved program."""
        return executorch_weights.read(stored.payload(), index)

    def _lower(self, component: Component, precision: str, settings: ExecuTorchSettings, what: str, path: Path) -> Path:
        """Trace, lower and write; every stage's graph is freed as soon as the next one exists."""
        from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
        from torch.fx.passes.infra.pass_base import PassResult

        def refuse_high_rank(module: torch.fx.GraphModule) -> PassResult:
            """Check again after decomposition, which can raise ranks (pixel shuffle)."""
            check_rank(module.graph.nodes, _MAX_RANK, what)
            return PassResult(module, False)

        ports = ports_json(component, settings, self._left(component, precision))
        program = self._traced(component, precision)
        check_rank(program.graph.nodes, _MAX_RANK, what)
        constants = with_own_storage(program)
        with thrifty(), quick_passes(), shared_by_copies(constants), self._lowering(component):
            edge = to_edge_transform_and_lower(
                program,
                transform_passes=[refuse_high_rank],
                partitioner=[self._partitioner(precision, settings)],
                constant_methods={PORTS: ports},
            )
        del program, constants
        lowered = edge.to_executorch(ExecutorchBackendConfig())  # memory planning is part of it: greedy, inputs included
        del edge
        with path.open("wb") as file:
            lowered.write_to_file(file)
        return path

    def join(self, parts: Mapping[str, Artifact], directory: Path) -> Joined:
        """Write `<role>.pte` with a method for every size; the delegate's constants and the methods' own are stored once."""
        from snapgen_deploy.export.executorch import methods as executorch_methods

        first = next(iter(parts.values()))
        path = directory / f"{first.role}{self.suffix}"
        entries = {size: "" if size == next(iter(parts)) else f"size_{size}" for size in parts}
        named = {s: (p.path, {FORWARD: method_of(entries[s]), PORTS: ports_method_of(entries[s])}) for s, p in parts.items()}
        with (
            wrap_errors(f"{first.role} -> {first.target}, sizes joined"),
            tempfile.TemporaryDirectory(dir=directory) as scratch,
        ):
            made = Path(scratch) / path.name
            executorch_methods.join(named, read_program, made)
            os.replace(made, path)
            shared = self._shared_bytes(path)
        return Joined(
            {size: Artifact(first.target, first.role, path, (path,), entry) for size, entry in entries.items()},
            sum(f.stat().st_size for part in parts.values() for f in part.files),
            path.stat().st_size,
            shared,
        )

    def open(self, path: Path, *, threads: int, entry: str = "") -> Runner:
        """Load with the ExecuTorch runtime; its thread pool, one per process, is set to `threads`.

        The runner takes exactly the file's inputs, and raises BadInput for others.

        Raises:
            BadInput: if the file is missing, or has no method for `entry` or its ports.
            RuntimeError: if ExecuTorch cannot load it.
        """
        if not path.is_file():
            raise BadInput(f"{path}: no such file")
        with wrap_errors(f"{path.name}: ExecuTorch cannot load it"):
            from snapgen_deploy.export.executorch.runtime import Runtime, portable_lib

            portable_lib._unsafe_reset_threadpool(threads)
            program = Runtime.get().load_program(path)
            wanted = (method_of(entry), ports_method_of(entry))
            if not set(wanted) <= program.method_names:
                raise BadInput(f"{path.name}: has methods {sorted(program.method_names)}, expected {' and '.join(wanted)}")
            inputs, outputs = parse_ports(program.load_method(wanted[1]).execute([])[0])
            method = program.load_method(wanted[0])

        def run(arrays: Mapping[str, np.ndarray]) -> Arrays:
            check_inputs(path.name, inputs, arrays)
            with wrap_errors(f"{path.name}: ExecuTorch failed"):
                values = method.execute([_tensor(arrays[port.name]) for port in inputs])
            return {port.name: value.numpy() for port, value in zip(outputs, values, strict=True)}

        return run

    def unavailable(self, variant: str) -> str | None:
        """None if the runtime is installed with the variant's backend."""
        if variant not in self.variants:
            return f"executorch has no variant {variant!r}; it has {', '.join(self.variants)}"
        if util.find_spec("executorch") is None:
            return "executorch is not installed"
        with wrap_errors("executorch"):
            from snapgen_deploy.export.executorch.runtime import Runtime

            known = Runtime.get().backend_registry.registered_backend_names
        missing = f"this build of executorch has the backends {', '.join(sorted(known))}, not {self.backend}"
        return None if self.backend in known else missing

    def describe(self, path: Path, entry: str = "") -> Description:
        """Operators, delegates and weights of one method of the saved file; `bytes` are those of the whole file.

        `ops` counts the delegate's nodes and the operators outside of it, `placement` the calls of each delegate and of
        portable kernels, `weights` constants by their key in the file.

        Raises:
            BadInput: if the file is not a program with such an `entry`.
        """
        program, base, plan = read_plan(path, entry)
        with wrap_errors(f"{path.name}: reading it back"):
            return self._description(path, program, plan, base)

    def versions(self) -> dict[str, str]:
        """Versions of the packages that take part in an export."""
        return {name: metadata.version(name) for name in ("torch", "executorch", "torchao")}

    def _shared_bytes(self, path: Path) -> int:
        """Bytes of weights that more than one method of a saved file uses."""
        from snapgen_deploy.export.executorch import methods as executorch_methods

        program, base = read_program(path)
        users: dict[str, set[str]] = {}
        for plan in program.execution_plan:
            for index, delegate in enumerate(plan.delegates):
                if delegate.id == self.backend:
                    constants = self._contents(StoredDelegate(path, program, base, delegate), index).weights
                    users.setdefault(plan.name, set()).update(constants)
        return executorch_methods.shared_bytes(program, users, StoredDelegate(path, program, base, None).segment)

    def _description(self, path: Path, program: Any, plan: Any, base: int) -> Description:
        from snapgen_deploy.export.executorch.reading import DelegateCall, KernelCall

        names = [f"{o.name}.{o.overload}" if o.overload else o.name for o in plan.operators]
        calls = [i.instr_args for chain in plan.chains for i in chain.instructions]
        portable = Counter(names[c.op_index] for c in calls if isinstance(c, KernelCall))
        placement = Counter(plan.delegates[c.delegate_index].id for c in calls if isinstance(c, DelegateCall))
        ops, weights, skipped = Counter(portable), portable_constants(plan), dict[str, str]()
        for index, delegate in enumerate(plan.delegates):
            if delegate.id == self.backend:
                found = self._contents(StoredDelegate(path, program, base, delegate), index)
                ops.update(found.nodes)
                weights.update(found.weights)
                skipped.update(found.floats)
        skipped = dict(sorted(skipped.items())) if self._quantised(program, plan, weights) else {}
        return Description(
            bytes=path.stat().st_size,
            ops=dict(sorted(ops.items())),
            placement={**dict(sorted(placement.items())), "portable": sum(portable.values())},
            portable_ops=dict(sorted(portable.items())),
            weights={name: weight.kind for name, weight in sorted(weights.items())},
            average_bits=average_bits(weights.values()),
            skipped=skipped,
            notes=(
                f"planned memory: {sum(plan.non_const_buffer_sizes)} bytes outside the delegates",
                *not_quantised(skipped, weights),
            ),
        )


def ports_json(component: Component, settings: ExecuTorchSettings, left: str = "") -> str:
    """What the method `ports` of a program returns; `left` is the precision at which no layer of it could be stored."""
    data = {
        "role": component.role,
        "doc": component.doc,
        "inputs": [dataclasses.asdict(p) for p in component.inputs],
        "outputs": [dataclasses.asdict(p) for p in component.outputs],
        **{key: value for key, value in dataclasses.asdict(settings).items() if value},
        **({LEFT_KEY: left} if left else {}),
    }
    return json.dumps(data, sort_keys=True)


def _tensor(array: np.ndarray) -> torch.Tensor:
    """A contiguous copy: the runtime ignores strides, and the array may be a view or read-only."""
    import torch

    return torch.from_numpy(np.array(array, order="C"))
