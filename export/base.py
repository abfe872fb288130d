"""The interface of an export target, and the plain data that passes between the stages.

A target is a class that satisfies `Target` and a record for general code (`snapgen_deploy.export.spec.TargetSpec`);
`snapgen_deploy.export.registry` lists them. Backends are imported inside the functions of their own modules, so that importing
this package needs none of them.
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
    """How close a run came to the largest number of its precision."""

    largest: float  # magnitude
    limit: float
    tightest: tuple[str, ...]  # the operations that came closest, a line each


@dataclass(frozen=True)
class Component:
    """A network ready for a target: static shapes, positional inputs in the order of `inputs`.

    If it is `expendable`, an export may free the module's weights as soon as it has a copy, to save memory. Parameters that
    are `on_disk` hold no values: a target takes them only at a precision that its record lists in `by_tensor`.
    """

    role: Role
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    example: tuple[Tensor, ...]
    doc: str
    expendable: bool = False
    # Parameters of `module` with few different values, and the bits of an index into them; stored so by targets with palettes.
    palettes: Mapping[str, int] = field(default_factory=dict)
    on_disk: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)  # parameters of `module`, and how each is read
    calibration: Callable[[], Iterator[Arrays]] | None = None  # real inputs of the network, for quantisers that are calibrated

    def calibrating(self) -> Iterator[Arrays]:
        """Calibration inputs by the names of the ports.

        Raises:
            BadInput: if there are none.
        """
        if self.calibration is None:
            raise BadInput(f"{self.role}: this precision is calibrated; give prompts with --calibration")
        return self.calibration()

    def release(self) -> None:
        """Free the weights of an expendable component, whose module cannot be called afterwards; a no-op for others."""
        if self.expendable:
            for tensor in (*self.module.parameters(), *self.module.buffers()):
                tensor.data = tensor.data.new_empty(0)


@dataclass(frozen=True)
class Artifact:
    """One exported component on disk. `path` is what the runtime opens; `files` are all files that belong to it."""

    target: str  # "name" or "name:variant"
    role: Role
    path: Path
    files: tuple[Path, ...]
    entry: str = ""  # the graph in a file with several (a Core ML function, an ExecuTorch method); "" is the default one
    compile_seconds: float | None = None  # of a vendor's compiler, if one was used; changes from run to run


@dataclass(frozen=True)
class Joined:
    """The graphs of one component for several picture sizes, in files that store each weight once."""

    artifacts: Mapping[str, Artifact]  # picture size -> its graph; the first is the default one
    separate_bytes: int  # of the files that were joined
    bytes: int  # of the joined files
    shared_bytes: int  # of weights that more than one graph refers to, read back from the joined files; each counted once


@dataclass(frozen=True)
class Weight:
    """A stored constant."""

    kind: str  # e.g. "float16", "int8 per channel", "palette4 per 16 channels"
    values: int  # how many weights it stands for
    bits: int  # in the file, scales and palettes included
    shape: tuple[int, ...] = ()

    @property
    def index_bits(self) -> int:
        """Bits of one index into a palette; 0 for a weight without one."""
        return int(self.kind.removeprefix("palette").split()[0]) if self.kind.startswith("palette") else 0


def element_bits(dtype: str) -> int:
    """Bits of one element, from the type's name; 8 if the name has no number (`bool`).

    >>> element_bits("uint4"), element_bits("float16"), element_bits("bool")
    (4, 16, 8)
    """
    digits = "".join(c for c in dtype if c.isdigit())
    return int(digits or 8)


def packed(kind: str) -> bool:
    """Whether a weight of this kind is quantised."""
    return kind.startswith(("palette", "int4", "uint4", "int8", "uint8", "constexpr_"))


def average_bits(weights: Iterable[Weight]) -> float | None:
    """Average stored bits per weight of a component; None if it has no weights."""
    found = tuple(weights)
    values = sum(w.values for w in found)
    return round(sum(w.bits for w in found) / values, 3) if values else None


def left_whole(skipped: Mapping[str, str], kinds: Iterable[str]) -> bool:
    """Whether a quantiser left every layer of a component; `kinds` are those of all its weights."""
    return bool(skipped) and not any(map(packed, kinds))


def not_quantised(skipped: Mapping[str, str], weights: Mapping[str, Weight]) -> tuple[str, ...]:
    """A note for every layer that a quantiser left as it was, after one that says so where it left them all."""
    whole = (f"nothing is quantised: all {len(skipped)} layers are left",) * left_whole(
        skipped, (w.kind for w in weights.values())
    )
    return (*whole, *(f"not quantised: {name}: {why}" for name, why in skipped.items()))


@dataclass(frozen=True)
class Description:
    """The contents of an artifact, read back from the file."""

    bytes: int
    ops: dict[str, int]  # op histogram of the saved graph
    placement: dict[str, int] = field(default_factory=dict)  # e.g. {"XnnpackBackend": 1, "portable": 0}
    portable_ops: dict[str, int] = field(default_factory=dict)  # ops left outside every delegate
    weights: dict[str, str] = field(default_factory=dict)  # weight name -> how it is stored, see `Weight.kind`
    average_bits: float | None = None  # per weight, scales and palettes included
    skipped: dict[str, str] = field(default_factory=dict)  # layers that stayed floats among quantised ones -> why
    lint: dict[str, int] = field(default_factory=dict)  # rule -> offenders, for targets that have a lint
    notes: tuple[str, ...] = ()


@runtime_checkable
class HoldsPalettes(Protocol):
    """A target with mixed precision: it stores a component's palettes as palettes, and reads them back from the file."""

    def weights(self, path: Path, entry: str = "") -> dict[str, Weight]:
        """Every stored weight of a saved artifact by its name; `entry` names one graph of several."""
        ...


class Target(Protocol):
    """One export format and its runtime."""

    def export(
        self, component: Component, variant: str, precision: str, directory: Path, options: Mapping[str, str]
    ) -> Artifact:
        """Write the component into `directory`.

        Raises:
            BadInput: if the variant, precision or an option is not offered, or the format cannot hold the component.
            RuntimeError: if the tools refuse the network; the message is one line.
        """
        ...

    def join(self, parts: Mapping[str, Artifact], directory: Path) -> Joined:
        """Put the graphs of one component, by picture size, into files in `directory` that share the weights.

        The parts are read, not changed, and need not be in `directory`. The same parts give the same bytes.

        Raises:
            BadInput: if the format cannot hold several graphs.
        """
        ...

    def open(self, path: Path, *, threads: int, entry: str = "") -> Runner:
        """Load what was saved at `path` (artifact.path) and return a function from named inputs to named outputs.

        `entry` (artifact.entry) names one graph of several.

        Raises:
            BadInput: if the file is not one of this target, or has no such graph.
        """
        ...

    def unavailable(self, variant: str) -> str | None:
        """Why this host cannot run the target's artifacts, or None if it can."""
        ...

    def describe(self, path: Path, entry: str = "") -> Description:
        """Read the saved artifact back; `entry` names one graph of several."""
        ...

    def versions(self) -> dict[str, str]:
        """Versions of the tools that wrote the artifact."""
        ...
