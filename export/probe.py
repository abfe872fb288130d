"""What `doctor --layers` asks a saved graph for, and the target that opens one; which target a file is of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from snapgen_deploy.export.base import Arrays
from snapgen_deploy.export.registry import spec_of, specs, target_of


@dataclass(frozen=True)
class GraphLayer:
    """One operation and what it makes; `inputs` are the values that other operations or the caller gave it."""

    name: str
    op: str
    output: str
    inputs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.op} '{self.name}' (output {self.output})"


class Probe(Protocol):
    """A saved graph whose inner values can be had."""

    layers: Sequence[GraphLayer]  # in the order of the file
    warnings: Sequence[str]  # what the runtime had to say about the values so far

    def exact(self, names: Sequence[str]) -> Arrays:
        """These values in single precision."""
        ...

    def saved(self, names: Sequence[str]) -> Arrays:
        """These values as the file's own runtime computes them."""
        ...


@runtime_checkable
class Probed(Protocol):
    """A target whose files show the values inside."""

    def probe(self, path: Path, inputs: Arrays | None, entry: str = "") -> Probe | str:
        """A saved artifact with its inputs, noise where they are None; or why single precision cannot be had from it."""
        ...


@runtime_checkable
class HoldsPackages(Protocol):
    """A target whose files are Core ML packages, or hold some: what the lint for the Neural Engine looks at."""

    def packages(self, path: Path, folder: Path) -> Sequence[Path]:
        """The packages of a saved artifact, taken out into `folder` where they lie in another file."""
        ...


@runtime_checkable
class Recognises(Protocol):
    """A target whose files are told by more than their suffix."""

    def recognises(self, path: Path) -> bool:
        """Whether a file or folder, which may be anybody's, is one of its own. BadInput where that cannot be read."""
        ...


def owner_of(path: Path) -> str | None:
    """The key of the target that a file or folder is of: by its content, else by its suffix; None for no target's."""
    found = specs().values()
    for spec in found:
        target, _ = target_of(spec.key)
        if isinstance(target, Recognises) and target.recognises(path):
            return spec.key
    return next((spec.key for spec in found if spec.suffix == path.suffix), None)


def holder_of(path: Path) -> HoldsPackages | None:
    """The target that finds Core ML packages in a file or folder like this one; None where none does."""
    owner = owner_of(path)
    like = [spec for spec in specs().values() if owner is not None and spec.suffix == spec_of(owner).suffix]
    targets = (target_of(spec.key)[0] for spec in like)
    return next((target for target in targets if isinstance(target, HoldsPackages)), None)


def noise(shapes: Mapping[str, tuple[tuple[int, ...], bool]]) -> Arrays:
    """Inputs for a graph of which no others are known, by the names, shapes and whether the values are whole numbers.

    Standard normal, seeded with the name; ones for masks, zeros for whole numbers.
    """
    made: Arrays = {}
    for name, (shape, whole) in shapes.items():
        if whole:
            made[name] = np.zeros(shape, np.int32)
        elif name.endswith("mask"):
            made[name] = np.ones(shape, np.float32)
        else:
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
            made[name] = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return made
