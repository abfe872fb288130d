"""What every export target offers, and the plain data that passes between the stages.

A target is one class that satisfies `Target` and one record of what general code knows of it
(`snapgen_deploy.export.spec.TargetSpec`); `snapgen_deploy.export.registry` lists them. Backends are imported inside their own
module's functions, so that importing this package needs none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.component import Port as Port  # targets take it from here
from snapgen_deploy.sparse import Layout as Layout

Role = str  # the name of a component, see `snapgen_deploy.families`

Arrays = dict[str, np.ndarray]
Runner = Callable[[Mapping[str, np.ndarray]], Arrays]


@dataclass(frozen=True)
class Headroom:
    """How close a run came to the largest number that its precision holds."""

    largest: float  # magnitude
    limit: float
    tightest: tuple[str, ...]  # the operations that came closest, a line each


@dataclass(frozen=True)
class Component:
    """A network ready for a target: static shapes, positional inputs in the order of `inputs`.

    Of an `expendable` one an export may free the module's weights as soon as it has them elsewhere, to save memory.
    """

    role: Role
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    example: tuple[Tensor, ...]
    doc: str
    expendable: bool = False
    # Parameters of `module` whose values are few, and the bits of an index into them; a target with palettes stores them so.
    palettes: Mapping[str, int] = field(default_factory=dict)
    calibration: Callable[[], Iterator[Arrays]] | None = None  # what the network is really given, for quantisers that look

    def calibrating(self) -> Iterator[Arrays]:
        """Inputs by the names of the ports; BadInput where nothing was given to calibrate with."""
        if self.calibration is None:
            raise BadInput(f"{self.role}: this precision is calibrated; give prompts with --calibration")
        return self.calibration()

    def release(self) -> None:
        """Free the weights of an expendable component, whose module cannot be called afterwards; keep those of others."""
        if self.expendable:
            for tensor in (*self.module.parameters(), *self.module.buffers()):
                tensor.data = tensor.data.new_empty(0)


@dataclass(frozen=True)
class Artifact:
    """One exported component on disk. `path` is what the runtime opens; `files` is all that belongs to it."""

    target: str  # "name" or "name:variant"
    role: Role
    path: Path
    files: tuple[Path, ...]
    entry: str = ""  # the graph in a file that holds several (a Core ML function, an ExecuTorch method); "" the default one
    compile_seconds: float | None = None  # of a vendor's compiler, where one took part; changes from run to run


@dataclass(frozen=True)
class Joined:
    """The graphs of one component for several picture sizes, in files that hold each weight once."""

    artifacts: Mapping[str, Artifact]  # size -> where its graph is; the first is the default one
    separate_bytes: int  # of the files that were joined
    bytes: int  # of the files that came out
    shared_bytes: int  # of weights that more than one graph refers to, read back from those files; each counted once


@dataclass(frozen=True)
class Weight:
    """A stored constant."""

    kind: str  # e.g. "float16", "int8 per channel", "palette4 per 16 channels"
    values: int  # how many weights it stands for
    bits: int  # that the file spends on it, scales and palettes included
    shape: tuple[int, ...] = ()

    @property
    def index_bits(self) -> int:
        """Of one index into a palette; 0 for a weight that is stored otherwise."""
        return int(self.kind.removeprefix("palette").split()[0]) if self.kind.startswith("palette") else 0


def element_bits(dtype: str) -> int:
    """Bits of one element of a type whose name tells them: `uint4` -> 4, `float16` -> 16; 8 of one that does not (`bool`)."""
    digits = "".join(c for c in dtype if c.isdigit())
    return int(digits or 8)


def packed(kind: str) -> bool:
    """Whether a weight of this kind is stored in the fewer bits of a quantiser."""
    return kind.startswith(("palette", "int4", "uint4", "int8", "uint8", "constexpr_"))


def average_bits(weights: Iterable[Weight]) -> float | None:
    """Stored bits of one weight, over all of a component; None where it has none."""
    found = tuple(weights)
    values = sum(w.values for w in found)
    return round(sum(w.bits for w in found) / values, 3) if values else None


def not_quantised(skipped: Mapping[str, str]) -> tuple[str, ...]:
    """A note for every layer that a quantiser left as it was."""
    return tuple(f"not quantised: {name}: {why}" for name, why in skipped.items())


@dataclass(frozen=True)
class Description:
    """What is really in an artifact, read back from the file."""

    bytes: int
    ops: dict[str, int]  # op histogram of the saved graph
    placement: dict[str, int] = field(default_factory=dict)  # e.g. {"XnnpackBackend": 1, "portable": 0}
    portable_ops: dict[str, int] = field(default_factory=dict)  # ops left outside every delegate
    weights: dict[str, str] = field(default_factory=dict)  # weight name -> how it is stored, see `Weight.kind`
    average_bits: float | None = None  # of a weight, scales and palettes included
    skipped: dict[str, str] = field(default_factory=dict)  # layers left in floats among quantised ones -> why
    lint: dict[str, int] = field(default_factory=dict)  # rule -> offenders, for targets that have a lint
    notes: tuple[str, ...] = ()


@runtime_checkable
class HoldsPalettes(Protocol):
    """A target with mixed precision: it stores a component's palettes as palettes, and says so from the file."""

    def weights(self, path: Path, entry: str = "") -> dict[str, Weight]:
        """Every stored weight of a saved artifact by its name, of several graphs those of the one that `entry` names."""
        ...


class Target(Protocol):
    """One export format and its runtime."""

    def export(
        self, component: Component, variant: str, precision: str, directory: Path, options: Mapping[str, str]
    ) -> Artifact:
        """Write the component into `directory`; raise BadInput or RuntimeError with one clear line on failure."""
        ...

    def join(self, parts: Mapping[str, Artifact], directory: Path) -> Joined:
        """Put the graphs of one component, by picture size, into files in `directory` that share the weights.

        The parts are read, not changed, and need not lie in `directory`. The same parts give the same bytes. Raises BadInput
        where the format at hand cannot hold several graphs.
        """
        ...

    def open(self, path: Path, *, threads: int, entry: str = "") -> Runner:
        """Load what was saved at `path` (artifact.path) and return a function from named inputs to named outputs.

        `entry` (artifact.entry) names one graph of several; BadInput where the file has no such graph.
        """
        ...

    def unavailable(self, variant: str) -> str | None:
        """Why this host cannot run the target's artifacts, or None when it can."""
        ...

    def describe(self, path: Path, entry: str = "") -> Description:
        """Read the saved artifact back, of several graphs the one that `entry` names."""
        ...

    def versions(self) -> dict[str, str]:
        """Versions of the tools that wrote the artifact."""
        ...
