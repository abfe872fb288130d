"""Core ML: `.mlpackage` directories that hold an ML Program.

Options of `CoreML.export` (text): `deployment`, the oldest system that must run it (default iOS18; any name of
coremltools' `target` from iOS15 and macOS12 on), and `author`, `license`, `version`, which Xcode shows.

A package for several picture sizes has a function `size_<height>x<width>` for each over one weight file; the first is the
default one (`snapgen_deploy.export.coreml.functions`).

The same network gives the same bytes: protobuf maps are written in order, the conversion date is dropped, and the
identifiers of Manifest.json, random in coremltools, are derived from the content. The package format is what
coremltools 9.0 writes; see https://apple.github.io/coremltools/docs-guides/source/save-and-load.html
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from snapgen_deploy.errors import BadInput, GateFailed
from snapgen_deploy.export.base import (
    Arrays,
    Artifact,
    Component,
    Description,
    Headroom,
    Joined,
    Port,
    Runner,
    Weight,
    average_bits,
    not_quantised,
)
from snapgen_deploy.export.coreml import by_tensor as coreml_by_tensor
from snapgen_deploy.export.coreml import compress as coreml_compress
from snapgen_deploy.export.coreml import frontend as coreml_torch
from snapgen_deploy.export.coreml import palettes as coreml_palettes
from snapgen_deploy.export.coreml import weights as coreml_weights
from snapgen_deploy.export.coreml.functions import SINGLE
from snapgen_deploy.export.coreml.spec import COREML
from snapgen_deploy.export.shared import coremltools as coreml_thrift
from snapgen_deploy.export.shared.graph import check_inputs, check_offered, check_rank, parse_options, trace, wrap_errors
from snapgen_deploy.export.shared.tracing import quick_tracing
from snapgen_deploy.export.shared.weights_given import with_weights_given
from snapgen_deploy.system.documents import several
from snapgen_deploy.system.files import files_under
from snapgen_deploy.system.quiet import first_line

if TYPE_CHECKING:
    from snapgen_deploy.export.mil import RunReport
    from snapgen_deploy.export.probe import Probe

_TIGHTEST = 5  # operations that a record of fp16 headroom names
_MAX_RANK = 5  # the highest that Core ML's multi-arrays and the Neural Engine take
AUTHOR = "com.apple.CoreML"  # of both items in every package
DATA = Path("Data") / AUTHOR
SPEC = DATA / "model.mlmodel"
WEIGHTS = DATA / "weights"
_DATE_KEY = "com.github.apple.coremltools.conversion_date"
# Specification version -> first systems that read it (coremltools, `AvailableTarget`).
SYSTEMS = {6: "iOS 15, macOS 12", 7: "iOS 16, macOS 13", 8: "iOS 17, macOS 14", 9: "iOS 18, macOS 15", 10: "iOS 26, macOS 26"}
FIRST_MLPROGRAM = 6  # specification version


@dataclasses.dataclass(frozen=True)
class _Settings:
    """Options of one export."""

    deployment: str = "iOS18"
    author: str = ""
    license: str = ""
    version: str = ""


class CoreML:
    """ML Programs, run by Core ML on macOS."""

    name: str = COREML.name
    variants: tuple[str, ...] = COREML.variants
    precisions: tuple[str, ...] = COREML.precisions
    suffix: str = COREML.suffix

    def export(
        self, component: Component, variant: str, precision: str, directory: Path, options: Mapping[str, str]
    ) -> Artifact:
        """Write `<role>.mlpackage` into `directory`, in place of one that is there; nothing is left behind on failure.

        Inputs and outputs keep the ports' dtypes at every precision; inside, fp16 computes and stores in half precision,
        and mixed computes in half precision and stores the component's palettes as palettes.

        Raises:
            BadInput: if the variant, precision or an option is not offered.
            Refused: if the graph has tensors of rank above `_MAX_RANK`.
            RuntimeError: if torch or coremltools refuse the network; the message is one line.
        """
        check_offered(self.name, (variant, precision), self.variants, self.precisions)
        settings = parse_options(_Settings, self.name, options)
        path = directory / f"{component.role}{self.suffix}"
        what = f"{component.role} -> {self.name}"
        with wrap_errors(what), tempfile.TemporaryDirectory(dir=directory) as scratch:
            how = coreml_compress.PRECISIONS.get(precision, coreml_compress.Exact("fp16"))  # mixed: its palettes are there
            if component.on_disk:
                made = _by_tensor(component, precision, settings, what, Path(scratch) / path.name)
            else:
                groups = coreml_palettes.equals(component) if precision == "mixed" else []
                made = _convert(component, precision, settings, what, Path(scratch) / path.name)
                component.release()  # fp32 programs have held them until here
                gc.collect()  # as torch's and coremltools' programs do, in reference cycles
                if precision == "mixed" and component.palettes:
                    small = made.with_name(f"palettes{self.suffix}")
                    coreml_palettes.palettise(made, component.palettes, small)
                    coreml_palettes.check(component.palettes, groups, self.weights(small))
                    shutil.rmtree(made)
                    made = small.rename(made)
                coreml_compress.compress(made, how, component)
            _normalise(made, component, settings, "" if _is_stored(made, how) else precision)
            if path.exists():
                shutil.rmtree(path)
            os.replace(made, path)
        return Artifact(self.name, component.role, path, tuple(files_under(path)))

    def join(self, parts: Mapping[str, Artifact], directory: Path) -> Joined:
        """Write `<role>.mlpackage` with a function for every size over one weight file (iOS 18 or later)."""
        from snapgen_deploy.export.coreml import functions as coreml_functions

        first = next(iter(parts.values()))
        path = directory / first.path.name
        entries = {size: f"size_{size}" for size in parts}
        with wrap_errors(f"{first.role} -> coreml, sizes joined"), tempfile.TemporaryDirectory(dir=directory) as scratch:
            made = Path(scratch) / path.name
            join_packages({entries[size]: part.path for size, part in parts.items()}, made)
            if path.exists():
                shutil.rmtree(path)
            os.replace(made, path)
        files = tuple(files_under(path))
        return Joined(
            {size: Artifact(self.name, first.role, path, files, entry) for size, entry in entries.items()},
            sum(f.stat().st_size for part in parts.values() for f in part.files),
            sum(f.stat().st_size for f in files),
            coreml_functions.shared_bytes(read_spec(path), path / DATA),
        )

    def open(self, path: Path, *, threads: int, entry: str = "") -> Runner:
        """Load with Core ML on macOS, and with our MIL executor elsewhere.

        The executor computes as the phone will store: fp16 after every operation that the program declares fp16, with
        `threads` threads; an overflow or NaN inside the program raises GateFailed. Core ML chooses threads and units itself.
        The runner takes exactly the package's inputs, and raises BadInput for others.

        Raises:
            BadInput: if `path` is not an ML Program, or has no function `entry`.
            RuntimeError: if the package cannot be loaded.
        """
        described = _described(read_spec(path), path.name, entry)
        inputs, outputs = (_ports(f) for f in (described.input, described.output))
        with wrap_errors(f"{path.name} cannot be loaded"):
            predict = _core_ml(path, entry) if sys.platform == "darwin" else _executor(path, entry, threads)

        return Loaded(path.name, inputs, outputs, predict)

    def unavailable(self, variant: str) -> str | None:
        """None: packages run everywhere, on macOS with Core ML, elsewhere with the MIL executor."""
        return f"coreml has no variants, got {variant!r}" if variant else None

    def describe(self, path: Path, entry: str = "") -> Description:
        """Operations, dtypes and weights of one function of the saved package; `bytes` are those of the whole package.

        `ops` counts MIL operations other than `const`; `weights` maps each constant of the weight file to how it is stored
        (`coreml_weights`). Where Core ML will run an operation is known on a Mac only, so `placement` is empty.

        Raises:
            BadInput: if the package is not an ML Program, or has no function `entry`.
        """
        from snapgen_deploy.export.lint import counts, lint_package

        spec = read_spec(path)
        name, found = _function(spec, path.name, entry)
        ops = Counter(op.type for op in found if op.type != "const")
        results = Counter(coreml_weights.dtype(o.type) for op in found if op.type != "const" for o in op.outputs)
        weights = dict(sorted(coreml_weights.stored(found)))
        skipped = coreml_weights.skipped(found, weights, coreml_compress.left_in(spec))
        moves = f"{ops['transpose']} transposes, {ops['reshape']} reshapes"
        system = SYSTEMS.get(spec.specificationVersion, "unknown")
        return Description(
            bytes=sum(f.stat().st_size for f in files_under(path)),
            ops=dict(sorted(ops.items())),
            weights={name: weight.kind for name, weight in weights.items()},
            average_bits=average_bits(weights.values()),
            skipped=skipped,
            lint=counts(lint_package(path, function=name)),
            notes=(
                f"specification version {spec.specificationVersion}: {system} or later",
                f"results by dtype: {', '.join(f'{n} {t}' for t, n in sorted(results.items()))}",
                f"layout changes: {moves}",
                *not_quantised(skipped, weights),
            ),
        )

    def weights(self, path: Path, entry: str = "") -> dict[str, Weight]:
        """Every constant of one function's weights, by its name, and how it is stored."""
        return dict(coreml_weights.stored(_function(read_spec(path), path.name, entry)[1]))

    def probe(self, path: Path, inputs: Arrays | None, entry: str = "") -> Probe | str:
        """The package in our executor, with its inputs or noise."""
        from snapgen_deploy.export.coreml.probe import CoreMLProbe, noise_inputs

        return CoreMLProbe(path, noise_inputs(path) if inputs is None else inputs, entry)

    def packages(self, path: Path, folder: Path) -> Sequence[Path]:
        """The package itself."""
        return (path,)

    def recognises(self, path: Path) -> bool:
        """Whether it looks like a package, whatever it is called."""
        from snapgen_deploy.export.lint import is_package

        return is_package(path)

    def versions(self) -> dict[str, str]:
        """Versions of the packages that take part in an export."""
        return {name: metadata.version(name) for name in ("torch", "coremltools")}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A package that is ready to run, by Core ML or by the MIL executor."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    predict: Any  # named arrays -> named arrays; the executor's runner also has a report

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        """Named outputs.

        Raises:
            BadInput: if the inputs are not the package's.
            GateFailed: if an inner value overflows fp16 or is NaN.
            RuntimeError: if the runtime fails.
        """
        check_inputs(self.name, self.inputs, arrays)
        with wrap_errors(f"{self.name} failed"):
            values = self.predict(dict(arrays))
        if (report := self._report()) is not None and not report.finite:
            raise GateFailed(f"{self.name}: fp16 overflows or is not a number: {report.tightest(1)[0]}; try --precision fp32")
        return {p.name: np.asarray(values[p.name], dtype=p.dtype).reshape(p.shape) for p in self.outputs}

    def headroom(self) -> Headroom | None:
        """The executor's record over all calls so far; None under Core ML, which keeps none, and for fp32 programs."""
        report = self._report()
        if report is None or not report.ops:
            return None
        tightest = report.tightest(_TIGHTEST)
        return Headroom(tightest[0].largest, float(np.finfo(np.float16).max), tuple(map(str, tightest)))

    @property
    def unrecorded(self) -> str:
        """Why there is no record of inner values; "" if there is one."""
        return "" if hasattr(self.predict, "report") else "Core ML shows no value inside a network"

    def _report(self) -> RunReport | None:
        return self.predict.report() if hasattr(self.predict, "report") else None


def _core_ml(path: Path, entry: str) -> Any:
    return coreml_thrift.load().models.MLModel(str(path), function_name=entry or None).predict


def _executor(path: Path, entry: str, threads: int) -> Any:
    from snapgen_deploy.export.mil import open_package

    return open_package(path, mode="device", function=entry or None, threads=threads)


def deployment_target(name: str) -> Any:
    """coremltools' constant for a system that reads ML Programs, by its name.

    Raises:
        BadInput: if there is no such system, or it does not read ML Programs.
    """
    members = coreml_thrift.load().target.__members__
    known = [n for n, t in members.items() if t.value >= FIRST_MLPROGRAM and n.startswith(("iOS", "macOS"))]
    if name not in known:
        raise BadInput(f"coreml: option deployment={name!r}; expected one of {', '.join(known)}")
    return members[name]


def _convert(component: Component, precision: str, settings: _Settings, what: str, path: Path) -> Path:
    """Trace and convert; coremltools writes the package to `path` itself, so that the weights are written once."""
    ct = coreml_thrift.load()
    coreml_torch.register_fixes()
    target = deployment_target(settings.deployment)
    if precision == "mixed" and target.value < ct.target.iOS18.value:
        raise BadInput(f"coreml: precision mixed with deployment={settings.deployment!r}; expected iOS18 or later")
    with quick_tracing():
        program = trace(component).run_decompositions({})
    gc.collect()  # the program as traced is larger, and held by reference cycles
    check_rank(program.graph.nodes, _MAX_RANK, what)
    with coreml_thrift.thrifty(component.release):
        ct.convert(
            program,
            inputs=[ct.TensorType(name=p.name, shape=p.shape, dtype=np.dtype(p.dtype).type) for p in component.inputs],
            outputs=[ct.TensorType(name=p.name, dtype=np.dtype(p.dtype).type) for p in component.outputs],
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16,
            pass_pipeline=coreml_palettes.pipeline() if component.palettes else None,
            minimum_deployment_target=target,
            skip_model_load=True,
            package_dir=str(path),
        )
    return path


def _by_tensor(component: Component, precision: str, settings: _Settings, what: str, path: Path) -> Path:
    """Convert the graph alone, then store its weights one by one.

    Raises:
        BadInput: if weights cannot be stored so at this precision or for these systems.
    """
    ct, how = coreml_thrift.load(), coreml_compress.PRECISIONS.get(precision)
    if precision not in COREML.by_tensor or not isinstance(how, coreml_compress.Exact | coreml_compress.Linear):
        offered = ", ".join(COREML.by_tensor)
        raise BadInput(f"{what}: it is too large to be in memory, which takes a precision of {offered}; got {precision}")
    if deployment_target(settings.deployment).value < ct.target.iOS18.value:
        raise BadInput(
            f"{what}: it is too large to be in memory, which takes iOS18 or later; got deployment={settings.deployment}"
        )
    made, given = with_weights_given(
        component, "float16", coreml_palettes.constant_name, in_rows=isinstance(how, coreml_compress.Linear)
    )
    package = _convert(made, precision, settings, what, path)
    gc.collect()  # torch's and coremltools' programs
    spec = read_spec(package)
    coreml_by_tensor.store_constants(spec, given, how, package / WEIGHTS)
    (package / SPEC).write_bytes(spec.SerializeToString(deterministic=True))
    return package


def _is_stored(package: Path, how: coreml_compress.Scheme) -> bool:
    """Whether weights are stored as asked for: False where no layer of the network can be."""
    if isinstance(how, coreml_compress.Exact):
        return True
    return coreml_weights.check_compressed(list(operations(read_spec(package).mlProgram.functions[SINGLE])), how)


def _normalise(package: Path, component: Component, settings: _Settings, left: str) -> None:
    """Document the ports and the model, check them, and rewrite what differs from run to run.

    `left` is the precision at which no layer could be stored, "" where that is not so.
    """
    spec = read_spec(package)
    for features, ports in ((spec.description.input, component.inputs), (spec.description.output, component.outputs)):
        got, expected = _ports(features), tuple(dataclasses.replace(p, doc="") for p in ports)
        if got != expected:
            raise RuntimeError(f"ports of the package are {got}, expected {expected}")
        for feature, port in zip(features, ports, strict=True):
            feature.shortDescription = port.doc
    about = spec.description.metadata
    about.shortDescription = component.doc
    about.author, about.license, about.versionString = settings.author, settings.license, settings.version
    if left:
        coreml_compress.state_left(spec, left)
    write_plainly(package, spec)


def write_plainly(package: Path, spec: Any) -> None:
    """Write the model message of a package without what differs from run to run, and a manifest that follows from it."""
    spec.description.metadata.userDefined.pop(_DATE_KEY, None)
    for entry in package.iterdir():  # coremltools leaves its debug map of torch operations beside the manifest
        if entry.is_file():
            entry.unlink()
    (package / SPEC).write_bytes(spec.SerializeToString(deterministic=True))
    _write_manifest(package)


def join_packages(packages: Mapping[str, Path], made: Path) -> None:
    """Write the package `made` with a function for each of `packages`, by name, over one weight file; the first is the default.

    Raises:
        BadInput: if a package has several functions, or is for systems before iOS 18.
    """
    from snapgen_deploy.export.coreml import functions as coreml_functions

    (made / WEIGHTS).mkdir(parents=True)
    specs = {name: (read_spec(package), package / DATA) for name, package in packages.items()}
    spec = coreml_functions.join(specs, made / WEIGHTS / "weight.bin")
    if not any((made / WEIGHTS).iterdir()):
        (made / WEIGHTS).rmdir()
    (made / SPEC).write_bytes(spec.SerializeToString(deterministic=True))
    _write_manifest(made)


def _write_manifest(package: Path) -> None:
    """Manifest.json with identifiers that follow from the content."""
    items = {identifier(package / SPEC): _item(SPEC, "CoreML Model Specification")}
    root = next(iter(items))
    if (package / WEIGHTS).is_dir():
        items[identifier(*sorted((package / WEIGHTS).iterdir()))] = _item(WEIGHTS, "CoreML Model Weights")
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": items, "rootModelIdentifier": root}
    (package / "Manifest.json").write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", encoding="utf-8")


def _item(path: Path, description: str) -> dict[str, str]:
    return {
        "author": AUTHOR,
        "description": description,
        "name": path.name,
        "path": path.relative_to("Data").as_posix(),
    }


def identifier(*files: Path) -> str:
    """A version 5 UUID of the files' names and contents."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return str(uuid.uuid5(uuid.NAMESPACE_OID, digest.hexdigest()))


def read_spec(package: Path) -> Any:
    """The Model message of a package.

    Raises:
        BadInput: if `package` is not a Core ML package, or not an ML Program.
    """
    if not (package / SPEC).is_file():
        raise BadInput(f"{package}: not a Core ML package: it has no {SPEC.as_posix()}")
    with wrap_errors("coremltools"):
        model = coreml_thrift.messages().Model_pb2
    try:
        spec = model.Model.FromString((package / SPEC).read_bytes())
    except Exception as error:
        raise BadInput(f"{package.name}: {SPEC.name} cannot be read: {first_line(error)}") from error
    if spec.WhichOneof("Type") != "mlProgram":
        raise BadInput(f"{package.name}: holds a {spec.WhichOneof('Type')}, expected an ML Program")
    return spec


def _described(spec: Any, package: str, entry: str) -> Any:
    """The description of a function's inputs and outputs: its own, or the model's if there is one function."""
    about = spec.description
    if not about.functions:
        if entry:
            raise BadInput(f"{package}: holds one function, got the name {entry!r}")
        return about
    found = {f.name: f for f in about.functions}
    name = entry or about.defaultFunctionName
    if name not in found:
        raise BadInput(f"{package}: no function {name!r}; it has {several(list(found))}")
    return found[name]


def _function(spec: Any, package: str, entry: str) -> tuple[str, list[Any]]:
    """The name and all operations of the function that `entry` names, or of the default one."""
    name = getattr(_described(spec, package, entry), "name", "") or next(iter(spec.mlProgram.functions))
    return name, list(operations(spec.mlProgram.functions[name]))


def _ports(features: Any) -> tuple[Port, ...]:
    """Named multi-arrays of the package as ports; documentation is left out."""
    kinds = coreml_thrift.messages().FeatureTypes_pb2.ArrayFeatureType.ArrayDataType
    arrays = [(f.name, f.type.multiArrayType) for f in features]
    return tuple(Port(n, tuple(a.shape), kinds.Name(a.dataType).lower(), "") for n, a in arrays)


def operations(function: Any) -> Iterator[Any]:
    """Every operation of a function, those of nested blocks included."""

    def walk(block: Any) -> Iterator[Any]:
        for operation in block.operations:
            yield operation
            for inner in operation.blocks:
                yield from walk(inner)

    yield from walk(function.block_specializations[function.opset])
