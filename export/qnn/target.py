"""ONNX for Snapdragon's Hexagon NPU: compiled here to context binaries, and run here on the emulation of Qualcomm's wheel.

An optional extra: `pip install 'snapgen-deploy[qnn]'` (onnxruntime-qnn). Of a component there are three files:

- `<role>.onnx`, which the app opens with onnxruntime's QNN provider, and `<role>_qnn.bin`, the compiled context it refers to;
- `<role>-graph.onnx`, what was compiled: for `w8a16` with 8-bit weights and calibrated 16-bit activations, for `fp16` in
  float32, which the compiler turns to half precision. `doctor --layers` runs it, and an app can compile it for another chip.

Vendor code runs in a companion process only. CPU fallback is off: a node that the NPU does not take fails the export.

Options of `OnnxQnn.export` (all values are text): `soc_model`, Qualcomm's number of the chip, and `htp_arch`, the version of
its NPU, both needed; `seconds`, how long one call of the vendor's tool may take (3600).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from snapgen_deploy.errors import BadInput, GateFailed, SnapgenError
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
from snapgen_deploy.export.onnx import file as onnx_file
from snapgen_deploy.export.onnx import weights as onnx_weights
from snapgen_deploy.export.onnx.target import ORT_TYPES, Onnx
from snapgen_deploy.export.onnx.write import EXTERNAL_DATA_BYTES
from snapgen_deploy.export.qnn import graph as qnn_graph
from snapgen_deploy.export.qnn import session as qnn_session
from snapgen_deploy.export.qnn.session import Chip, Compiled
from snapgen_deploy.export.qnn.spec import QNN, UNIT
from snapgen_deploy.export.shared.extras import check_extra, missing_extra
from snapgen_deploy.export.shared.graph import check_inputs, check_offered, parse_options
from snapgen_deploy.system.companion import Companion
from snapgen_deploy.system.quiet import first_line

if TYPE_CHECKING:
    from snapgen_deploy.export.probe import Probe

_GRAPH = "-graph"  # ending of the name of the file that was compiled
CHIP_KEYS = ("soc_model", "htp_arch")
PRECISION_KEY, NODES_KEY = "precision", "nodes_"  # metadata of a context's .onnx, beside the chip


@dataclass(frozen=True)
class _Settings:
    """Options of one export."""

    soc_model: str = ""
    htp_arch: str = ""
    seconds: str = "3600"

    @staticmethod
    def parse(options: Mapping[str, str]) -> _Settings:
        """From the plan's text options.

        Raises:
            BadInput: if a name is unknown, the chip is missing, or a value is not a number.
        """
        found = parse_options(_Settings, "onnx:qnn", options)
        for name in (*CHIP_KEYS, "seconds"):
            text = getattr(found, name)
            if not text.isdecimal() or int(text) < 1:
                raise BadInput(f"onnx:qnn: option {name}={text!r}; expected a whole number, at least 1")
        return found


class OnnxQnn:
    """Context binaries for Qualcomm's NPU."""

    name: str = QNN.name
    variants: tuple[str, ...] = QNN.variants
    precisions: tuple[str, ...] = QNN.precisions
    suffix: str = QNN.suffix

    def export(
        self, component: Component, variant: str, precision: str, directory: Path, options: Mapping[str, str]
    ) -> Artifact:
        """Write `<role>.onnx`, `<role>_qnn.bin` and `<role>-graph.onnx` into `directory`; nothing is left on failure.

        Raises:
            BadInput: if the variant, precision or an option is not offered, there are no calibration inputs, the component is
                larger than 2 GB in fp32, or the extra is not installed.
            GateFailed: if the NPU does not take a node; the message names the first one and its operator.
            ChildDied: if the vendor's compiler crashes or hangs.
            RuntimeError: if another tool fails; the message is one line.
        """
        check_offered("onnx:qnn", (variant, precision), self.variants, self.precisions)
        settings = _Settings.parse(options)
        check_extra("onnx:qnn")
        what = f"{component.role} -> onnx:qnn"
        try:
            with tempfile.TemporaryDirectory(dir=directory) as folder:
                graph = _graph(component, precision, Path(folder))
                made = Path(folder) / "compiled" / f"{component.role}{self.suffix}"
                made.parent.mkdir()
                chip = Chip(settings.soc_model, settings.htp_arch)
                compiled = _compile(what, graph, made, chip, float(settings.seconds))
                _note(made, chip, precision, compiled)
                graph = Path(shutil.move(graph, made.with_name(f"{component.role}{_GRAPH}{self.suffix}")))
                files = tuple(directory / f.name for f in sorted(made.parent.iterdir()))
                for file in files:
                    os.replace(made.parent / file.name, file)
        except SnapgenError:
            raise
        except Exception as error:
            raise RuntimeError(f"{what}: {first_line(error)}") from error
        place = directory / made.name
        return Artifact(f"{self.name}:{variant}", component.role, place, files, compile_seconds=round(compiled.seconds, 1))

    def join(self, parts: Mapping[str, Artifact], directory: Path) -> Joined:
        """Not supported: the emulation cannot load contexts that share weights, so no gate could check them.

        Raises:
            BadInput: always.
        """
        raise BadInput(
            f"onnx:qnn: {len(parts)} picture sizes in one file: Qualcomm's emulation crashes when it loads contexts that share "
            "weights (QNN 2.51), so that they cannot be checked; export one --resolution at a time"
        )

    def open(self, path: Path, *, threads: int, entry: str = "") -> Runner:
        """Load a context on the emulation in a companion process; `threads` is ignored.

        The runner takes exactly the file's inputs, and raises BadInput for others.

        Raises:
            BadInput: if the file is missing or not a context that we wrote, or `entry` is given.
            ChildDied: if the vendor's library crashes or hangs.
            RuntimeError: if the vendor's library refuses the context.
        """
        _no_entry(path, entry)
        chip, _, _ = _stated(path)
        return serve(path, chip)

    def unavailable(self, variant: str) -> str | None:
        """None if the extra is installed."""
        return missing_extra(f"{self.name}:{variant}")

    def describe(self, path: Path, entry: str = "") -> Description:
        """Operators and weights of the graph that was compiled, and the number of onnxruntime's nodes on each unit.

        Raises:
            BadInput: if a file is missing or not ours, or `entry` is given.
        """
        _no_entry(path, entry)
        chip, precision, nodes = _stated(path)
        graph = compiled_graph(path)
        model, _ = onnx_file.read(graph)
        weights = onnx_weights.stored(model)
        if precision == "fp16":
            weights = {
                n: replace(w, kind="float16", bits=w.bits // 2) if w.kind == "float32" else w for n, w in weights.items()
            }
        skipped = onnx_weights.skipped(model, weights)
        files = (path, path.with_name(f"{path.stem}_qnn.bin"), graph)
        return Description(
            bytes=sum(f.stat().st_size for f in files),
            ops=dict(sorted(Counter(n.op_type for n in model.graph.node).items())),
            placement=nodes,
            weights={name: weight.kind for name, weight in weights.items()},
            average_bits=average_bits(weights.values()),
            skipped=skipped,
            notes=(
                f"SoC model {chip.soc_model}, Hexagon architecture v{chip.htp_arch}",
                f"{graph.name}: what was compiled, "
                + (
                    "its weights in float32, in the context in fp16" if precision == "fp16" else "QDQ, quantised by onnxruntime"
                ),
                *not_quantised(skipped, weights),
            ),
        )

    def probe(self, path: Path, inputs: Arrays | None, entry: str = "") -> Probe | str:
        """The graph that was compiled, on the emulation, with its inputs or noise."""
        from snapgen_deploy.export.onnx.probe import OnnxProbe, noise_inputs

        _no_entry(path, entry)
        graph, chip = compiled_graph(path), chip_of(path)
        return OnnxProbe(graph, noise_inputs(graph) if inputs is None else inputs, lambda p, given: serve(p, chip)(given))

    def recognises(self, path: Path) -> bool:
        """Whether it is an ONNX file around a compiled context."""
        from snapgen_deploy.export.onnx.probe import operators

        return path.suffix == self.suffix and "EPContext" in operators(path)

    def versions(self) -> dict[str, str]:
        """Versions of the packages that take part in an export, and of Qualcomm's compiler."""
        there = {**Onnx().versions(), "onnxruntime-qnn": metadata.version("onnxruntime-qnn")}
        return {**there, "QNN": qnn_session.library_version()}


def compiled_graph(path: Path) -> Path:
    """The file that a context was compiled from.

    Raises:
        BadInput: if it is missing.
    """
    graph = path.with_name(f"{path.stem}{_GRAPH}{path.suffix}")
    if not graph.is_file():
        raise BadInput(f"{graph}: no such file; export the bundle again")
    return graph


def chip_of(path: Path) -> Chip:
    """The chip that a context was compiled for.

    Raises:
        BadInput: if `path` is not a context that we wrote.
    """
    return _stated(path)[0]


def serve(path: Path, chip: Chip, seconds: float = 3600.0) -> Runner:
    """Load a context, or compile a graph, in a companion process, and return its runner.

    Raises:
        ChildDied: if the vendor's library crashes or hangs.
        RuntimeError: if it refuses the file.
    """
    companion = Companion(f"{path.name} on Qualcomm's emulation")
    ports = _ports(companion.call(qnn_session.load, str(path), chip, seconds=seconds))

    def run(inputs: Mapping[str, np.ndarray]) -> Arrays:
        check_inputs(path.name, ports, inputs)
        found: Arrays = companion.call(qnn_session.run, str(path), dict(inputs), seconds=seconds)
        return found

    return run


def _ports(found: Mapping[str, tuple[str, list[int]]]) -> Sequence[Port]:
    def dtype(kind: str) -> Literal["float32", "int32"]:
        return "int32" if ORT_TYPES.get(kind) == "int32" else "float32"

    return [Port(name, tuple(shape), dtype(kind), "") for name, (kind, shape) in found.items()]


def _graph(component: Component, precision: str, folder: Path) -> Path:
    """The graph to compile: exported, in the NPU's operations, and quantised if the precision requires it."""
    import onnx

    exported = Onnx().export(component, "cpu", "fp32", folder, {"attention": "spelled"})
    plain, total = exported.path, sum(f.stat().st_size for f in exported.files)
    if total > EXTERNAL_DATA_BYTES:  # the quantiser and the compiler were never tried with a model in several files
        raise BadInput(
            f"onnx:qnn: the {component.role} is {total / 1e9:.2f} GB in fp32; at most 2 GB: choose a narrower --width"
        )
    model = onnx.load(str(plain))
    qnn_graph.divide(model)
    onnx.save(model, str(plain))
    if precision == "fp16":
        return plain
    made = folder / f"quantised-{plain.name}"
    qnn_graph.quantise(plain, component, made)
    return made


def _compile(what: str, graph: Path, made: Path, chip: Chip, seconds: float) -> Compiled:
    companion = Companion(f"{what}: Qualcomm's compiler")
    try:
        places = (str(f.relative_to(graph.parent)) for f in (graph, made))
        compiled: Compiled = companion.call(
            qnn_session.compile_context, str(graph.parent.absolute()), *places, chip, seconds=seconds
        )
    except RuntimeError as error:
        refused = qnn_session.refused(companion.printed())
        if not refused:
            raise
        raise GateFailed(f"{what}: {_refusal(refused, graph, chip)}") from error
    finally:
        companion.close()
    if set(compiled.nodes) != {UNIT}:
        raise GateFailed(f"{what}: nodes by unit are {compiled.nodes}; expected all on {UNIT}")
    return compiled


def _refusal(refused: Sequence[tuple[str, str]], graph: Path, chip: Chip) -> str:
    """One line about the nodes that the NPU does not take, with the first one in the order of the graph."""
    order = [n.name for n in onnx_file.read(graph)[0].graph.node]
    first, op = min(refused, key=lambda r: order.index(r[0]) if r[0] in order else len(order))
    kinds = Counter(kind for _, kind in refused)
    half = len(refused) > len(order) / 2
    fix = "it computes nothing in fp16: choose --precision w8a16" if half else "write it in other operations"
    return (
        f"the NPU (SoC model {chip.soc_model}, v{chip.htp_arch}) does not take {len(refused)} of {len(order)} nodes, first "
        f"'{first}' ({op}); by operator {', '.join(f'{n} {k}' for k, n in sorted(kinds.items()))}; {fix}"
    )


def _note(made: Path, chip: Chip, precision: str, compiled: Compiled) -> None:
    """Write the chip, the precision and the nodes per unit into a context's .onnx."""
    model = _wrapper(made)
    stated = {"soc_model": chip.soc_model, "htp_arch": chip.htp_arch, PRECISION_KEY: precision}
    stated |= {f"{NODES_KEY}{unit}": str(count) for unit, count in compiled.nodes.items()}
    for key, value in stated.items():
        model.metadata_props.add(key=key, value=value)
    made.write_bytes(model.SerializeToString(deterministic=True))


def _wrapper(path: Path) -> Any:
    import onnx

    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise BadInput(f"{path.name}: not an ONNX model: {first_line(error)}") from error


def _stated(path: Path) -> tuple[Chip, str, dict[str, int]]:
    """Chip, precision and nodes by unit from the metadata of a context that we wrote.

    Raises:
        BadInput: if the file has no such metadata.
    """
    stated = {p.key: p.value for p in _wrapper(path).metadata_props}
    if missing := [key for key in (*CHIP_KEYS, PRECISION_KEY) if key not in stated]:
        raise BadInput(f"{path.name}: not a context that `export --target onnx:qnn` wrote: it does not state {missing[0]}")
    nodes = {key.removeprefix(NODES_KEY): int(value) for key, value in stated.items() if key.startswith(NODES_KEY)}
    if not nodes:
        raise BadInput(f"{path.name}: does not state where its nodes run; export it again with --target onnx:qnn")
    return Chip(stated["soc_model"], stated["htp_arch"]), stated[PRECISION_KEY], nodes


def _no_entry(path: Path, entry: str) -> None:
    if entry:
        raise BadInput(f"{path.name}: a context holds one graph, got the name {entry!r}")
