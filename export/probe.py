"""Access to the inner values of a saved graph for `doctor --layers`; finds the target that a file belongs to."""

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
    """One operation with its output; `inputs` are the values that come from other operations or from the caller."""

    name: str
    op: str
    output: str
    inputs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.op} '{self.name}' (output {self.output})"


class Probe(Protocol):
    """A saved graph whose inner values can be read."""

    layers: Sequence[GraphLayer]  # in the order of the file
    warnings: Sequence[str]  # the runtime's warnings about the values so far

    def exact(self, names: Sequence[str]) -> Arrays:
        """These values in single precision."""
        ...

    def saved(self, names: Sequence[str]) -> Arrays:
        """These values as the file's own runtime computes them."""
        ...


@runtime_checkable
class Probed(Protocol):
    """A target whose files give access to inner values."""

    def probe(self, path: Path, inputs: Arrays | None, entry: str = "") -> Probe | str:
        """A saved artifact with its inputs (None: noise); or the reason why it has no single-precision values."""
        ...


@runtime_checkable
class HoldsPackages(Protocol):
    """A target whose files are or contain Core ML packages, which the Neural Engine lint checks."""

    def packages(self, path: Path, folder: Path) -> Sequence[Path]:
        """The packages of a saved artifact; those inside another file are extracted into `folder`."""
        ...


@runtime_checkable
class Recognises(Protocol):
    """A target that recognises its files by their content."""

    def recognises(self, path: Path) -> bool:
        """Whether a file or folder of unknown origin is one of this target.

        Raises:
            BadInput: if it cannot be read.
        """
        ...


def owner_of(path: Path) -> str | None:
    """The key of the target that a file or folder belongs to, by its content, else by its suffix; None if there is none.

    Raises:
        BadInput: if the file cannot be read.
    """
    found = specs().values()
    for spec in found:
        target, _ = target_of(spec.key)
        if isinstance(target, Recognises) and target.recognises(path):
            return spec.key
    return next((spec.key for spec in found if spec.suffix == path.suffix), None)


def holder_of(path: Path) -> HoldsPackages | None:
    """The target that finds Core ML packages in such a file or folder; None if there is none.

    Raises:
        BadInput: if the file cannot be read.
    """
    owner = owner_of(path)
    like = [spec for spec in specs().values() if owner is not None and spec.suffix == spec_of(owner).suffix]
    targets = (target_of(spec.key)[0] for spec in like)
    return next((target for target in targets if isinstance(target, HoldsPackages)), None)


def noise(shapes: Mapping[str, tuple[tuple[int, ...], bool]]) -> Arrays:
    """Made-up inputs of a graph, from each input's name, shape and whether it is an integer.

    Standard normal, seeded with the name; ones for masks, zeros for integers.
    """
    made: Arrays = {}
    for name, (shape, integer) in shapes.items():
        if integer:
            made[name] = np.zeros(shape, np.int32)
        elif name.endswith("mask"):
            made[name] = np.ones(shape, np.float32)
        else:
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
            made[name] = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return made
