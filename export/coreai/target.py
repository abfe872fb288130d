"""Core AI: `.aimodel` assets for iOS 27 and macOS 27, converted by Apple's coreai-torch and run here by Apple's own runtime.

An optional extra of this package: `pip install 'snapgen-deploy[coreai]'`. Options of `CoreAI.export` (text): `deployment`, the
oldest system that must run it (iOS27 or macOS27, which are one format), `author`, `license`, `version`. They, the
description, and every port's name, shape, dtype and documentation are in the asset's `metadata.json`; what Apple's keys have no
place for is under `creatorDefinedMetadata`. Precisions: `snapgen_deploy.export.coreai.compress`.

Layout: channels-first, as for Core ML. On the embedded student at full width (coreai-core 1.0.0b3 for x86-64 Linux, one busy
thread) a step in fp16 took 1.24 s channels-first against 31 s token-major, whose products of fp16 matrices the runtime computes
slowly, and its relative error was 3.1e-3 against 5.9e-3; in fp32, 0.43 s against 0.20 s. The Neural Engine, for which the
channels-first graph is made, cannot be measured here.

An asset for several picture sizes has the function `main` for the first and `size_<height>x<width>` for each other one;
constants are stored once for all functions. The same network gives the same bytes: constants have keys of their content
(`snapgen_deploy.export.coreai.constants`), and the creation date, which the metadata would hold, is left out.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import (
    Arrays,
    Artifact,
    Component,
    Description,
    Joined,
    Port,
    Runner,
    average_bits,
    not_quantised,
)
from snapgen_deploy.export.coreai import compress as coreai_compress
from snapgen_deploy.export.coreai import constants as coreai_constants
from snapgen_deploy.export.coreai import lint as coreai_lint
from snapgen_deploy.export.coreai import session as coreai_session
from snapgen_deploy.export.coreai import weights as coreai_weights
from snapgen_deploy.export.coreai.products import in_parts
from snapgen_deploy.export.coreai.spec import COREAI
from snapgen_deploy.export.coreml.compress import Exact
from snapgen_deploy.export.lint import Finding, counts
from snapgen_deploy.export.shared.extras import check_extra, missing_extra
from snapgen_deploy.export.shared.graph import check_inputs, check_offered, check_rank, parse_options, trace, wrap_errors
from snapgen_deploy.export.shared.half import HalfInside
from snapgen_deploy.export.shared.tracing import quick_tracing
from snapgen_deploy.system.companion import Companion
from snapgen_deploy.system.documents import several
from snapgen_deploy.system.files import files_under
from snapgen_deploy.system.quiet import first_line

_MAX_RANK = 5  # the Neural Engine's, as for Core ML
MAIN = "main"  # coreai-torch's own name of a single function
_METADATA, PROGRAM, DIGEST = "metadata.json", "main.mlirb", "main.hash"
MAGIC = b"ML\xefR"  # of MLIR bytecode: https://mlir.llvm.org/docs/BytecodeFormat/
_DATE_KEY = "creationDate"
_LEFT_KEY = "precisionLeft"  # of our own metadata: at which the quantiser took no layer of the asset
# Of one load or call. Apple's runtime for Linux interprets: it took 1.2 s for a step of 9M parameters over 256 tokens in fp16.
LIMIT_S = 4 * 3600.0
DEPLOYMENTS = ("iOS27", "macOS27")


@dataclasses.dataclass(frozen=True)
class _Settings:
    """Options of one export."""

    deployment: str = "iOS27"
    author: str = ""
    license: str = ""
    version: str = ""


class CoreAI:
    """Core AI assets, run by Apple's runtime in a process of its own."""

    name: str = COREAI.name
    variants: tuple[str, ...] = COREAI.variants
    precisions: tuple[str, ...] = COREAI.precisions
    suffix: str = COREAI.suffix

    def export(
        self, component: Component, variant: str, precision: str, directory: Path, options: Mapping[str, str]
    ) -> Artifact:
        """Write `<role>.aimodel` into `directory`, in place of one that is there; nothing is left behind on failure.

        Inputs and outputs keep the ports' dtypes at every precision; all but fp32 compute in half precision inside, for which
        the module of the component is changed in place.

        Raises:
            BadInput: if the variant, precision or an option is not offered, or the extra is not installed.
            Refused: if the graph has tensors of rank above `_MAX_RANK`.
            RuntimeError: if torch or Apple's tools refuse the network; the message is one line.
        """
        check_offered(self.name, (variant, precision), self.variants, self.precisions)
        settings = parse_options(_Settings, self.name, options)
        if settings.deployment not in DEPLOYMENTS:
            raise BadInput(f"coreai: option deployment={settings.deployment!r}; expected one of {', '.join(DEPLOYMENTS)}")
        check_extra(self.name)
        path = directory / f"{component.role}{self.suffix}"
        what = f"{component.role} -> {self.name}"
        how = coreai_compress.PRECISIONS[precision]
        with wrap_errors(what), tempfile.TemporaryDirectory(dir=directory) as scratch:
            program = _convert(component, precision, what)
            component.release()
            gc.collect()  # torch's program holds the weights, too, in reference cycles
            program = coreai_compress.compress(program, how)
            graph = coreai_weights.graphs(program)[MAIN]  # as all views of a program, valid as long as the program lives
            _check_ports(graph, component)
            about = _metadata(component, settings)
            if not isinstance(how, Exact) and not coreai_weights.check_compressed(graph, how):
                about["creatorDefinedMetadata"][_LEFT_KEY] = precision
            _write(program, Path(scratch) / path.name, about, path)
        return Artifact(self.name, component.role, path, tuple(files_under(path)))

    def join(self, parts: Mapping[str, Artifact], directory: Path) -> Joined:
        """Write `<role>.aimodel` with a function for every size; each constant is stored once."""
        check_extra(self.name)
        first = next(iter(parts.values()))
        path = directory / first.path.name
        entries = {size: "" if number == 0 else f"size_{size}" for number, size in enumerate(parts)}
        with wrap_errors(f"{first.role} -> coreai, sizes joined"), tempfile.TemporaryDirectory(dir=directory) as scratch:
            program = _joined({entries[size] or MAIN: part.path for size, part in parts.items()})
            known = [_read_metadata(part.path) for part in parts.values()]
            about = known[0]
            about["creatorDefinedMetadata"]["functions"] = {
                entry or MAIN: one["creatorDefinedMetadata"]["functions"][MAIN]
                for entry, one in zip(entries.values(), known, strict=True)
            }
            _write(program, Path(scratch) / path.name, about, path)
            shared = coreai_constants.shared_bytes(_program(path))
        files = tuple(files_under(path))
        return Joined(
            {size: Artifact(self.name, first.role, path, files, entry) for size, entry in entries.items()},
            sum(f.stat().st_size for part in parts.values() for f in part.files),
            sum(f.stat().st_size for f in files),
            shared,
        )

    def open(self, path: Path, *, threads: int, entry: str = "") -> Runner:
        """Load with Apple's runtime in a process of its own; the runtime chooses its threads itself, `threads` is ignored.

        The runner takes exactly the function's inputs, and raises BadInput for others.

        Raises:
            BadInput: if the extra is not installed, or the asset is damaged or has no function `entry`.
            RuntimeError: if the runtime refuses the asset.
            ChildDied: if the runtime crashes or hangs.
        """
        check_extra(self.name)
        _check_asset(path)
        companion = Companion(f"{path.name} in Apple's runtime", chatter="[default]")
        where = (str(path), entry or MAIN)
        with wrap_errors(f"{path.name} cannot be loaded"):
            signature: coreai_session.Signature = companion.call(coreai_session.load, *where, seconds=LIMIT_S)
        _check_function(path, entry, signature.functions)
        inputs, outputs = (
            tuple(Port(name, shape, dtype, "") for name, shape, dtype in found)  # type: ignore[arg-type]
            for found in (signature.inputs, signature.outputs)
        )

        def run(arrays: Mapping[str, np.ndarray]) -> Arrays:
            check_inputs(path.name, inputs, arrays)
            with wrap_errors(f"{path.name} failed"):
                given = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
                values = companion.call(coreai_session.run, *where, given, seconds=LIMIT_S)
            return {p.name: values[p.name] for p in outputs}

        return run

    def unavailable(self, variant: str) -> str | None:
        """None if the extra is installed."""
        return f"coreai has no variants, got {variant!r}" if variant else missing_extra(self.name)

    def describe(self, path: Path, entry: str = "") -> Description:
        """Operations and weights of one function of the saved asset; `bytes` are those of the whole asset.

        Where Core AI will run an operation is decided on the device, so `placement` is empty.

        Raises:
            BadInput: if the asset cannot be read or has no such function.
        """
        check_extra(self.name)
        program = _program(path)
        graph = _function(program, path, entry)
        weights = coreai_weights.stored(graph)
        asked = _read_metadata(path)["creatorDefinedMetadata"].get(_LEFT_KEY)
        skipped = coreai_weights.skipped(weights, coreai_compress.PRECISIONS.get(asked))
        from coreai.authoring import AIModelAsset

        summary = AIModelAsset.load(path).summary(include_statistics=False)
        system = summary._compatibility_version if summary is not None else None
        return Description(
            bytes=sum(f.stat().st_size for f in files_under(path)),
            ops=coreai_weights.histogram(graph),
            weights={name: weight.kind for name, weight in weights.items()},
            average_bits=average_bits(weights.values()),
            skipped=skipped,
            lint=counts(coreai_lint.findings(graph, entry or MAIN)),
            notes=(f"Core AI program: iOS, macOS {system} or later", *not_quantised(skipped, weights)),
        )

    def findings(self, path: Path) -> Sequence[Finding]:
        """What the lint says of every function of an asset."""
        check_extra(self.name)
        program = _program(path)
        return [found for name, graph in coreai_weights.graphs(program).items() for found in coreai_lint.findings(graph, name)]

    def versions(self) -> dict[str, str]:
        """Versions of the packages that take part in an export."""
        return {name: metadata.version(name) for name in ("torch", "coreai-torch", "coreai-core", "coreai-opt")}


def _convert(component: Component, precision: str, what: str) -> Any:
    """Trace and convert to an AIProgram with one function, `MAIN`."""
    import coreai_torch

    if precision != "fp32":
        component = dataclasses.replace(component, module=HalfInside(component.module).eval())
    table = coreai_torch.get_decomp_table
    with quick_tracing():
        program = in_parts(trace(component).run_decompositions(table()), table)
    check_rank(program.graph.nodes, _MAX_RANK, what)
    converter = coreai_torch.TorchConverter(mode=coreai_torch.TorchConverter.Mode.RELEASE)
    names = ([p.name for p in component.inputs], [p.name for p in component.outputs])
    converter.add_exported_program(program, input_names=names[0], output_names=names[1], entrypoint_name=MAIN)
    return converter.to_coreai()


def _check_ports(graph: Any, component: Component) -> None:
    """Raise RuntimeError unless the function's ports are the component's."""
    expected = tuple(tuple(dataclasses.replace(p, doc="") for p in s) for s in (component.inputs, component.outputs))
    if (got := coreai_weights.ports(graph)) != expected:
        raise RuntimeError(f"ports of the program are {got}, expected {expected}")


def _metadata(component: Component, settings: _Settings) -> dict[str, Any]:
    """metadata.json of an asset, in the keys of coreai-core 1.0.0b3, whose `creatorDefinedMetadata` is ours to fill."""
    sides = {"inputs": component.inputs, "outputs": component.outputs}
    function = {side: [dataclasses.asdict(p) | {"shape": list(p.shape)} for p in found] for side, found in sides.items()}
    own: dict[str, Any] = {
        "role": component.role,
        "functions": {MAIN: function | {"doc": component.doc}},
        "minimumSystem": settings.deployment,
        **({"version": settings.version} if settings.version else {}),
    }
    stated = {"author": settings.author, "license": settings.license, "description": component.doc}
    return {key: text for key, text in stated.items() if text} | {"creatorDefinedMetadata": own}


def _write(program: Any, scratch: Path, about: Mapping[str, Any], path: Path) -> None:
    """Save to `scratch`, add the metadata, and replace `path`."""
    coreai_constants.by_content(program)
    program.save_asset(scratch)
    stamped = _read_metadata(scratch)
    stamped.pop(_DATE_KEY, None)
    kept = {key: value for key, value in about.items() if key != _DATE_KEY}
    text = json.dumps(stamped | kept, indent=2, sort_keys=True, ensure_ascii=False)
    (scratch / _METADATA).write_text(text + "\n", encoding="utf-8")
    if path.exists():
        shutil.rmtree(path)
    os.replace(scratch, path)


def _read_metadata(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / _METADATA).read_text(encoding="utf-8"))
    return found


def _joined(parts: Mapping[str, Path]) -> Any:
    """One program with a function for each part, under the part's name."""
    from coreai._compiler.ir import InsertionPoint, StringAttr
    from coreai.authoring import Context

    context = Context()
    with context:
        programs = {name: _program(path) for name, path in parts.items()}
        whole: Any = None
        for name, program in programs.items():
            found = coreai_weights.graphs(program)
            if list(found) != [MAIN]:
                raise RuntimeError(f"{name}: expected one function {MAIN}, got {', '.join(found)}")
            found[MAIN].attributes["sym_name"] = StringAttr.get(name)
            if whole is None:
                whole = program
            else:
                found[MAIN].operation.clone(ip=InsertionPoint(whole._module._mlir_module.body))
        return whole


def _program(path: Path) -> Any:
    """The program of a saved asset.

    Raises:
        BadInput: if it is not a Core AI asset, or does not match the asset's hash.
    """
    _check_asset(path)
    with wrap_errors("coreai"):
        from coreai.authoring import AIModelAsset
    try:
        return AIModelAsset.load(path).program
    except Exception as error:
        raise BadInput(f"{path}: not a readable Core AI asset: {first_line(error)}") from error


def _check_asset(path: Path) -> None:
    """Raise BadInput if the program is missing or damaged: Apple's loader would end the process."""
    program, digest = path / PROGRAM, path / DIGEST
    if not (program.is_file() and digest.is_file()):
        raise BadInput(f"{path}: not a Core AI asset: it has no {PROGRAM} or no {DIGEST}")
    with program.open("rb") as opened:
        begins = opened.read(len(MAGIC))
        opened.seek(0)
        if begins != MAGIC or hashlib.file_digest(opened, "sha256").digest() != digest.read_bytes():
            raise BadInput(f"{path}: not a readable Core AI asset: {PROGRAM} does not match {DIGEST}, or is not MLIR bytecode")


def _function(program: Any, path: Path, entry: str) -> Any:
    """The graph of a function, valid as long as the program lives.

    Raises:
        BadInput: if the asset has no such function.
    """
    found = coreai_weights.graphs(program)
    _check_function(path, entry, found)
    return found[entry or MAIN]


def _check_function(path: Path, entry: str, known: Iterable[str]) -> None:
    if (name := entry or MAIN) not in known:
        raise BadInput(f"{path.name}: no function {name!r}; it has {several(list(known))}")
