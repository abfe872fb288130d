"""ExecuTorch with Core ML's delegate: `.pte` programs whose graph is a Core ML package inside.

ExecuTorch's partitioner and coremltools work on Linux as on a Mac (executorch 1.4.1). The delegate's payload is a Core ML
package serialised into one byte string (`executorch_coreml_model`). A saved `.pte` is run here by extracting the packages and
running them with our MIL executor, or with ExecuTorch's own runtime if that has the delegate (macOS).

The same network gives the same bytes: what differs from run to run (identifiers, dates, debug maps, the order of files) is
dropped or derived from the content. The identifier names the compiled model in the app's cache.

A program for several picture sizes holds one package with a function for each in its named data, and each method refers to its
function, as ExecuTorch's own `preprocess_multimethod` lays it out.

Options beside those of `executorch`: `deployment`, the oldest system that must run it (default iOS18), and `compute_units`
(`all`, `cpu_and_ne`, `cpu_and_gpu` or `cpu_only`), which the delegate asks Core ML for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapgen_deploy.errors import BadInput, GateFailed
from snapgen_deploy.export.base import Artifact, Component, Description, Joined, Runner, Weight
from snapgen_deploy.export.coreml import compress as coreml_compress
from snapgen_deploy.export.coreml import frontend as coreml_torch
from snapgen_deploy.export.coreml import weights as coreml_weights
from snapgen_deploy.export.coreml.functions import SINGLE
from snapgen_deploy.export.coreml.target import (
    DATA,
    CoreML,
    Loaded,
    deployment_target,
    join_packages,
    operations,
    read_spec,
    write_plainly,
)
from snapgen_deploy.export.executorch import methods as executorch_methods
from snapgen_deploy.export.executorch.program import (
    FORWARD,
    PORTS,
    StoredDelegate,
    constant_text,
    method_of,
    parse_ports,
    ports_method_of,
    read_plan,
    read_program,
)
from snapgen_deploy.export.executorch.spec import EXECUTORCH_COREML
from snapgen_deploy.export.executorch.target import ExecuTorch, ExecuTorchSettings
from snapgen_deploy.export.executorch.weights import Delegate
from snapgen_deploy.export.shared import coremltools as coreml_thrift
from snapgen_deploy.export.shared.graph import trace, wrap_errors

if TYPE_CHECKING:
    import torch

    from snapgen_deploy.export.executorch.coreml_model import Model

_UNITS = ("all", "cpu_and_ne", "cpu_and_gpu", "cpu_only")


@dataclasses.dataclass(frozen=True)
class CoreMLSettings(ExecuTorchSettings):
    """Options of one export."""

    deployment: str = "iOS18"
    compute_units: str = "all"


class ExecuTorchCoreML(ExecuTorch):
    """`.pte` files, run by ExecuTorch with Core ML's delegate, or here by the MIL executor."""

    variants: tuple[str, ...] = EXECUTORCH_COREML.variants
    precisions: tuple[str, ...] = EXECUTORCH_COREML.precisions
    backend: str = "CoreMLBackend"
    settings: type[ExecuTorchSettings] = CoreMLSettings

    def _traced(self, component: Component, precision: str) -> torch.export.ExportedProgram:
        """The unchanged graph: Core ML's converter decides what is fp16."""
        return trace(component)

    def _left(self, component: Component, precision: str) -> str:
        """Nothing: each package of the program says so itself."""
        return ""

    def _quantised(self, program: Any, plan: Any, weights: Mapping[str, Weight]) -> bool:
        """Always: what a package's quantiser left is what the package says."""
        return True

    def _partitioner(self, precision: str, settings: ExecuTorchSettings) -> Any:
        ct = coreml_thrift.load()
        from executorch.backends.apple.coreml.compiler import CoreMLBackend
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner

        coreml_torch.register_fixes()
        if not isinstance(settings, CoreMLSettings) or settings.compute_units not in _UNITS:
            raise BadInput(
                f"executorch:coreml: option compute_units={getattr(settings, 'compute_units', '')!r}; "
                f"expected one of {', '.join(_UNITS)}"
            )
        specs = CoreMLBackend.generate_compile_specs(
            compute_unit=ct.ComputeUnit[settings.compute_units.upper()],
            minimum_deployment_target=deployment_target(settings.deployment),
            compute_precision=ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16,
            model_type=CoreMLBackend.MODEL_TYPE.MODEL,
        )
        return CoreMLPartitioner(compile_specs=specs)

    def _lowering(self, component: Component) -> contextlib.AbstractContextManager[None]:
        return coreml_thrift.thrifty()

    def _finished(self, path: Path, component: Component, precision: str) -> Path:
        """The file with its packages compressed, and the same bytes every time."""
        from snapgen_deploy.export.executorch.coreml_model import model_in, pack_model

        component.release()
        how = coreml_compress.PRECISIONS[precision]

        def rewritten(method: str, payload: bytes) -> bytes:
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                model = model_in(payload, Path(scratch))
                coreml_compress.compress(model.package, how, component)
                spec = read_spec(model.package)
                found = list(operations(spec.mlProgram.functions[SINGLE]))
                if not isinstance(how, coreml_compress.Exact) and not coreml_weights.check_compressed(found, how):
                    coreml_compress.state_left(spec, precision)
                write_plainly(model.package, spec)
                return pack_model(model.package, model.names())

        made = path.with_name(f"finished-{path.name}")
        executorch_methods.join({"": (path, {FORWARD: FORWARD, PORTS: PORTS})}, read_program, made, rewritten)
        return made

    def join(self, parts: Mapping[str, Artifact], directory: Path) -> Joined:
        """Write `<role>.pte` with a method for every size over one package with a function for each (iOS 18 or later)."""
        from snapgen_deploy.export.coreml import functions as coreml_functions
        from snapgen_deploy.export.executorch.coreml_model import METHODS, PACKAGE, REFERENCE, pack_model

        first = next(iter(parts.values()))
        path = directory / f"{first.role}{self.suffix}"
        entries = {size: "" if size == next(iter(parts)) else f"size_{size}" for size in parts}
        with (
            wrap_errors(f"{first.role} -> {first.target}, sizes joined"),
            tempfile.TemporaryDirectory(dir=directory) as scratch,
        ):
            folder = Path(scratch)
            models = {method_of(entries[size]): self._only_model(part.path, folder / size) for size, part in parts.items()}
            package = folder / "joined" / PACKAGE  # everything beside it is packed, too
            package.parent.mkdir()
            join_packages({method: model.package for method, model in models.items()}, package)
            shared = coreml_functions.shared_bytes(read_spec(package), package / DATA)
            for model in models.values():
                shutil.rmtree(model.package.parent)
            whole = pack_model(package, {METHODS: {method: model.names() for method, model in models.items()}})
            key = f"coreml_{hashlib.sha256(whole).hexdigest()}"
            named = {
                s: (p.path, {FORWARD: method_of(entries[s]), PORTS: ports_method_of(entries[s])}) for s, p in parts.items()
            }

            def reference(method: str, payload: bytes) -> bytes:
                return REFERENCE + json.dumps({"version": 1, "key": key, "functionName": method}).encode()

            made = folder / path.name
            executorch_methods.join(named, read_program, made, reference, {key: whole})
            os.replace(made, path)
        return Joined(
            {size: Artifact(first.target, first.role, path, (path,), entry) for size, entry in entries.items()},
            sum(f.stat().st_size for part in parts.values() for f in part.files),
            path.stat().st_size,
            shared,
        )

    def _only_model(self, path: Path, folder: Path) -> Model:
        """The model of a program with a single delegate.

        Raises:
            BadInput: if the program has several delegates, or none.
        """
        folder.mkdir()
        models = self.models(path, folder)
        if len(models) != 1:
            raise BadInput(f"{path.name}: got {len(models)} delegates, expected one: several sizes share one Core ML package")
        return models[0]

    def models(self, path: Path, folder: Path, entry: str = "") -> tuple[Model, ...]:
        """Core ML models of one method of a saved program, in the order of its delegates, extracted into `folder`."""
        from snapgen_deploy.export.executorch.coreml_model import model_of

        program, base, plan = read_plan(path, entry)
        found = []
        for number, delegate in enumerate(plan.delegates):
            if delegate.id == self.backend:
                place = folder / f"{entry or FORWARD}-{number}"
                place.mkdir()
                found.append(model_of(StoredDelegate(path, program, base, delegate), place))
        return tuple(found)

    def packages(self, path: Path, folder: Path) -> Sequence[Path]:
        """The packages of a saved program's delegates, extracted into `folder`."""
        return [model.package for model in self.models(path, folder)]

    def _contents(self, stored: StoredDelegate, index: int) -> Delegate:
        from snapgen_deploy.export.executorch.coreml_model import model_of

        with tempfile.TemporaryDirectory() as scratch:
            model = model_of(stored, Path(scratch))
            spec = read_spec(model.package)
            found = list(operations(spec.mlProgram.functions[model.function or SINGLE]))
        prefix = f"{index}." if index else ""  # names are a package's own
        weights = dict(coreml_weights.stored(found))
        skipped = coreml_weights.skipped(found, weights, coreml_compress.left_in(spec))
        return Delegate(
            Counter(op.type for op in found if op.type != "const"),
            {f"{prefix}{name}": weight for name, weight in weights.items()},
            {f"{prefix}{name}": why for name, why in skipped.items()},
        )

    def describe(self, path: Path, entry: str = "") -> Description:
        """As `ExecuTorch.describe`, with the Neural Engine lint and the notes of the Core ML packages inside."""
        description = super().describe(path, entry)
        with tempfile.TemporaryDirectory() as scratch, wrap_errors(f"{path.name}: reading it back"):
            models = self.models(path, Path(scratch), entry)
            inside = [CoreML().describe(model.package, model.function) for model in models]
        lint = sum((Counter(one.lint) for one in inside), Counter[str]())
        notes = tuple(note for one in inside for note in one.notes if note not in description.notes)
        return dataclasses.replace(description, lint=dict(sorted(lint.items())), notes=(*description.notes, *notes))

    def open(self, path: Path, *, threads: int, entry: str = "") -> Runner:
        """Load with ExecuTorch if its runtime has the delegate, else extract the packages for our MIL executor.

        The executor rounds as the phone will store, see `CoreML.open`.

        Raises:
            BadInput: if the file is not a program with such an `entry`.
            GateFailed: if the executor is used and the program has operators outside the Core ML packages.
            RuntimeError: if the program cannot be loaded.
        """
        if super().unavailable(self.variants[0]) is None:
            return super().open(path, threads=threads, entry=entry)
        from snapgen_deploy.export.executorch.coreml_model import Chain, calls_of
        from snapgen_deploy.export.mil import open_package

        program, base, plan = read_plan(path, entry)
        inputs, outputs = parse_ports(constant_text(program, ports_method_of(entry)))
        if portable := self._description(path, program, plan, base).portable_ops:
            raise GateFailed(f"{path.name}: operators outside the Core ML delegate: {', '.join(portable)}")
        with wrap_errors(f"{path.name} cannot be loaded"), tempfile.TemporaryDirectory() as scratch:
            runners = {}
            for number, model in enumerate(self.models(path, Path(scratch), entry)):
                function = model.function or None
                runners[number] = model, open_package(model.package, mode="device", function=function, threads=threads)
        return Loaded(path.name, inputs, outputs, Chain(calls_of(plan, runners), plan, inputs, outputs))

    def unavailable(self, variant: str) -> str | None:
        """None: the packages inside run everywhere, with ExecuTorch and Core ML or with the MIL executor."""
        return None if variant in self.variants else f"got the variant {variant!r}, expected {self.variants[0]}"

    def versions(self) -> dict[str, str]:
        """Versions of the packages that take part in an export."""
        return {name: metadata.version(name) for name in ("torch", "executorch", "coremltools")}
