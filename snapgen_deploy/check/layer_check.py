"""The layers of a bundle's components, or of one file, against single precision: what to compare, and with which inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from snapgen_deploy.bundle.draw import full_key
from snapgen_deploy.bundle.reader import open_bundle
from snapgen_deploy.check.gates import error_limit
from snapgen_deploy.check.layers import CoreMLProbe, Found, OnnxProbe, Probe, first_wrong, run_on_cpu
from snapgen_deploy.errors import BadInput, SnapgenError
from snapgen_deploy.export.base import Arrays
from snapgen_deploy.export.registry import spec_of, target_of
from snapgen_deploy.export.shared.quiet import first_line
from snapgen_deploy.families import components_of
from snapgen_deploy.system.files import read_arrays

# Operators that hold their own quantisation: single precision with the same weights is not in such a file.
CLOSED = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "MatMulNBits")
# Targets whose files show no value between inputs and outputs.
CLOSED_TARGETS = {
    "executorch": "a .pte file hands whole graphs to its delegate, which shows no value inside",
    "coreai": "Apple's runtime takes an asset as a whole and shows no value inside",
}


@dataclass(frozen=True)
class Work:
    """One saved graph, its inputs, and what an output is held to (None: nothing is said)."""

    name: str
    path: Path
    target: str
    inputs: Arrays | None
    entry: str = ""
    limit: float | None = None


def of_path(path: Path, target: str | None, inputs: Path | None) -> Iterator[Work]:
    """The graphs of a bundle, or of one file; BadInput where there is none."""
    if not path.exists():
        raise BadInput(f"{path} does not exist; give a bundle directory, an .onnx file or a .mlpackage")
    if (path / "manifest.json").is_file():
        yield from of_bundle(path, target)
    else:
        yield of_file(path, inputs)


def of_bundle(path: Path, wanted: str | None) -> Iterator[Work]:
    """Every component of the target asked for, or of all; inputs are those of the first step of the first test vector."""
    from snapgen_deploy.bundle.vectors import port_values

    bundle = open_bundle(path)
    values, components = port_values(bundle), components_of(bundle.config)
    for key in (full_key(bundle, wanted),) if wanted is not None else bundle.targets:
        for role, artifact in bundle.artifacts(key).items():
            limit = error_limit(bundle.precision(key), components[role], bundle.limits(key))
            yield Work(f"{role} ({key})", artifact.path, key, values[role], artifact.entry, limit)


def of_file(path: Path, inputs: Path | None) -> Work:
    """One file; inputs from an .npz, or None for seeded noise. BadInput for a kind of file that is not known."""
    from snapgen_deploy.export.lint import is_package

    if is_package(path):
        target = "coreml"
    elif path.suffix == ".onnx":
        target = "onnx:qnn" if _is_context(path) else "onnx:cpu"
    elif path.suffix == ".pte":
        target = "executorch"
    else:
        raise BadInput(f"{path} is no bundle, .onnx file, .mlpackage or .pte file")
    if inputs is None:
        return Work(path.name, path, target, None)
    return Work(path.name, path, target, read_arrays(inputs, f"--inputs {inputs}"))


def compare(work: Work, limit: float) -> Found | str:
    """The first wrong layer, or why nothing can be compared."""
    try:
        probe = _probe(work)
        if isinstance(probe, str):
            return probe
        found = first_wrong(probe, limit)
    except SnapgenError:
        raise
    except Exception as error:  # of protobuf or a runtime, whose exceptions have no base of their own
        raise BadInput(f"{work.path.name} cannot be compared with these inputs: {first_line(error)}") from error
    return found if found.looked_at else "no operation of it could be looked at"


def _probe(work: Work) -> Probe | str:
    target, variant = target_of(work.target)
    if reason := CLOSED_TARGETS.get(spec_of(work.target).name):
        return f"{reason}: compare it as onnx:cpu"
    if reason := target.unavailable(variant):
        return reason
    if work.target == "coreml":
        return CoreMLProbe(work.path, _given(work, _noise_of_package, work.path), work.entry)
    if work.target == "onnx:qnn":
        from snapgen_deploy.export.qnn.target import chip_of, graph_of, serve

        graph, chip = graph_of(work.path), chip_of(work.path)
        return OnnxProbe(graph, _given(work, _noise_of_onnx, graph), lambda path, given: serve(path, chip)(given))
    if closed := _operators(work.path) & set(CLOSED):
        return f"its operator {min(closed)} quantises by itself; single precision with the same weights is not in the file"
    return OnnxProbe(work.path, _given(work, _noise_of_onnx, work.path), run_on_cpu)


def _given(work: Work, noise: Callable[[Path], Arrays], graph: Path) -> Arrays:
    """The work's own inputs, else noise for the graph."""
    return work.inputs if work.inputs is not None else noise(graph)


def _operators(path: Path) -> set[str]:
    import onnx

    try:
        return {n.op_type for n in onnx.load(str(path), load_external_data=False).graph.node}
    except Exception as error:  # protobuf's, or the system's
        raise BadInput(f"{path} cannot be read as an ONNX model: {first_line(error)}") from None


def _is_context(path: Path) -> bool:
    return "EPContext" in _operators(path)


def _noise_of_onnx(path: Path) -> Arrays:
    import onnx

    made = {}
    for value in onnx.load(str(path), load_external_data=False).graph.input:
        kind = value.type.tensor_type
        shape = tuple(d.dim_value for d in kind.shape.dim)
        made[value.name] = _noise(value.name, shape, whole=kind.elem_type == onnx.TensorProto.INT32)
    return made


def _noise_of_package(path: Path) -> Arrays:
    from snapgen_deploy.export.mil.runner import open_package

    ports = open_package(path).inputs
    return {p.name: _noise(p.name, tuple(p.shape), whole=p.dtype == "int32") for p in ports}


def _noise(name: str, shape: tuple[int, ...], *, whole: bool) -> np.ndarray:
    """Standard normal, the same for the same name and shape; ones for masks, zeros for whole numbers."""
    if whole:
        return np.zeros(shape, np.int32)
    if name.endswith("mask"):
        return np.ones(shape, np.float32)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
