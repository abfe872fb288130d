"""Compares the layers of a bundle's components, or of one file, with single precision: which graphs, with which inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from snapgen_deploy.bundle.draw import full_key
from snapgen_deploy.bundle.reader import open_bundle
from snapgen_deploy.check.gates import error_limit
from snapgen_deploy.check.layers import FoundLayers, first_wrong
from snapgen_deploy.errors import BadInput, SnapgenError
from snapgen_deploy.export.base import Arrays
from snapgen_deploy.export.probe import Probe, Probed, owner_of
from snapgen_deploy.export.registry import host_default, spec_of, specs, target_of
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.system.files import read_arrays
from snapgen_deploy.system.quiet import first_line


@dataclass(frozen=True)
class Work:
    """One saved graph to compare."""

    name: str
    path: Path
    target: str
    inputs: Arrays | None  # None: seeded noise
    entry: str = ""
    limit: float | None = None  # largest relative error of an output; None: not specified


def of_path(path: Path, target: str | None, inputs: Path | None) -> Iterator[Work]:
    """The graphs of a bundle, or the one of a file.

    Raises:
        BadInput: if the path does not exist, or is neither a bundle nor a known kind of file.
    """
    if not path.exists():
        raise BadInput(f"{path} does not exist; give a bundle directory, an .onnx file or a .mlpackage")
    if (path / "manifest.json").is_file():
        yield from of_bundle(path, target)
    else:
        yield of_file(path, inputs)


def of_bundle(path: Path, wanted: str | None) -> Iterator[Work]:
    """Every component of the wanted target, or of all targets, with the inputs of the first step of the first test vector.

    Raises:
        BadInput: if the bundle or its test vectors cannot be read, or the bundle does not hold the wanted target.
    """
    from snapgen_deploy.bundle.vectors import port_values

    bundle = open_bundle(path)
    values, components = port_values(bundle), components_of(bundle.config)
    for key in (full_key(bundle, wanted),) if wanted is not None else bundle.targets:
        for role, artifact in bundle.artifacts(key).items():
            limit = error_limit(bundle.precision(key), components[role], bundle.limits(key))
            yield Work(f"{role} ({key})", artifact.path, key, values[role], artifact.entry, limit)


def of_file(path: Path, inputs: Path | None) -> Work:
    """One file, with inputs from an .npz, or seeded noise for None.

    Raises:
        BadInput: if the kind of file is not known, or the inputs cannot be read.
    """
    if (target := owner_of(path)) is None:
        *suffixes, last = dict.fromkeys(spec.suffix for spec in specs().values())
        raise BadInput(f"{path} is neither a bundle nor one of {', '.join(suffixes)} and {last}")
    if inputs is None:
        return Work(path.name, path, target, None)
    return Work(path.name, path, target, read_arrays(inputs, f"--inputs {inputs}"))


def compare_layers(work: Work, limit: float) -> FoundLayers | str:
    """Find the first wrong layer, or return the reason why nothing can be compared.

    Raises:
        BadInput: if the file cannot be run with these inputs.
    """
    try:
        probe = _probe(work)
        if isinstance(probe, str):
            return probe
        found = first_wrong(probe, limit)
    except SnapgenError:
        raise
    except Exception as error:  # from protobuf or a runtime: their exceptions have no common base class
        raise BadInput(f"{work.path.name} cannot be compared with these inputs: {first_line(error)}") from error
    return found if found.looked_at else "none of its operations could be compared"


def _probe(work: Work) -> Probe | str:
    target, variant = target_of(work.target)
    if not isinstance(target, Probed):
        return f"{spec_of(work.target).closed}: compare it as {host_default().key}"
    if reason := target.unavailable(variant):
        return reason
    return target.probe(work.path, work.inputs, work.entry)
