"""What general code knows of an export target: one frozen record beside each target, in plain data.

A record needs neither its target's backend nor torch, so that listing devices and targets starts quickly. Only `name`,
`implementation`, `precisions`, `layout` and `suffix` have no default; the defaults are right for a target that nothing else is
known of: it asks for much memory, is timed on this host, and no link takes it. `snapgen_deploy.export.registry` lists the
records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from snapgen_deploy.sparse import Layout, OpForm, UpsampleForm

_Basis = Literal["neural_engine", "arm_cpu"]


@dataclass(frozen=True)
class Writing:
    """How networks are written for a target."""

    ops: OpForm = "spelled"  # operations of the token layout
    half_ops: OpForm = "half"  # the same at precision fp16
    upsample: UpsampleForm | None = None  # None: the layout's own
    forms: tuple[str, ...] = ("loop", "batched", "per_head")  # of the student's local attention, for `export --tune`
    text_form: str = "per_head"  # of the text encoder's attention

    def ops_at(self, precision: str) -> OpForm:
        """The operations of the token layout at a precision."""
        return self.half_ops if precision == "fp16" else self.ops


@dataclass(frozen=True)
class Cost:
    """Bytes of a process without a network, for each byte of its weights in fp32, and for each byte of its activations."""

    base: int
    weights: float
    activations: float = 0.0

    def of(self, weights: int, activations: int) -> int:
        """Bytes."""
        return self.base + round(self.weights * weights + self.activations * activations)


@dataclass(frozen=True)
class Memory:
    """Peak memory of an export on the computer that it runs on. The defaults are for a target that was not measured."""

    converting: Cost = Cost(1_000_000_000, 4.0)  # of the process that converts one component; activations do not count
    checking: Cost = Cost(1_000_000_000, 4.0, 5.0)  # of the one that runs what was saved, all components at once
    at_precision: Mapping[str, Cost] = field(default_factory=dict)  # of converting, where a precision takes another amount
    loop: int = 0  # bytes more to convert a student whose local attention is a loop over blocks
    # Bytes more to convert with an option (its name and value), for each byte of the component's activations.
    at_option: Mapping[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Runtime:
    """What runs a target's files on this host, and whether its time there means anything."""

    package: str = "torch"  # whose version a measurement on this host names
    module: str = ""  # imported before a load is timed: an app has no Python to import
    preload: tuple[str, ...] = ()  # modules that start no thread, and may be imported in the process that rounds fork from
    shared_process: bool = False  # holds two models in one process at their usual speed
    numbers_only: str = ""  # why its time on this host says nothing about a device; "" where it does
    instead: str = "measure another target of the bundle (--target)"  # what to do where `numbers_only` says why
    host_default: bool = False  # stands for this host where no target was named; one target's


@dataclass(frozen=True)
class Extra:
    """`pip install 'snapgen-deploy[name]'`, and the modules that come with it."""

    name: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class OlderSystems:
    """Systems that read a target's files, but none that holds several picture sizes."""

    deployments: tuple[str, ...]  # values of the option `deployment`
    needed: str  # the first systems that do, for people


@dataclass(frozen=True)
class OneUnit:
    """Every node of a file runs on one processing unit."""

    unit: str
    gate: str  # the name of the gate that counts the others


@dataclass(frozen=True)
class OneDelegate:
    """No operator over tokens or pixels is left outside the delegate. Operators `at_ports` may be, around a single delegate."""

    at_ports: str = ""


@dataclass(frozen=True)
class TargetSpec:
    """What an export target is, offers and costs."""

    name: str
    implementation: str  # "module:Class", a `snapgen_deploy.export.base.Target`; imported only when used
    precisions: tuple[str, ...]  # the first is the default
    layout: Layout  # of the student's graph that it takes best
    suffix: str  # of an artifact's main file
    variant: str = ""  # "" where the name has no variants
    calibrated: tuple[str, ...] = ()  # precisions whose quantiser looks at real inputs
    palette_bits: tuple[int, ...] = ()  # of an index, that `mixed` may choose; () where there is no mixed precision
    loaded_as: Mapping[str, str] = field(default_factory=dict)  # precision -> that of its weights in the device's memory
    one_size: str = ""  # why it cannot hold several picture sizes, where it cannot
    older_systems: OlderSystems | None = None
    from_figures: tuple[str, ...] = ()  # figures of a profile that become options of the same name; all are needed
    folders: Mapping[str, str] = field(default_factory=dict)  # value of the option `folders` -> module that arranges them so
    writing: Writing = field(default_factory=Writing)
    memory: Memory = field(default_factory=Memory)
    tools: tuple[str, ...] = ()  # packages whose version may change a converted file
    runtime: Runtime = field(default_factory=Runtime)
    links: tuple[str, ...] = ()  # of `bench --link`, that run its files
    basis: _Basis | None = None  # what an estimate of its time on a device without measurements rests on
    extra: Extra | None = None  # of this package, that its tools come with
    placement: OneUnit | OneDelegate | None = None  # None: its files do not say where operators run
    closed: str = "its files show no value between inputs and outputs"  # why `doctor --layers` cannot look inside, if so

    @property
    def key(self) -> str:
        """`name` or `name:variant`, as on the command line."""
        return f"{self.name}:{self.variant}" if self.variant else self.name

    @property
    def variants(self) -> tuple[str, ...]:
        """The variant; () where there is none."""
        return (self.variant,) if self.variant else ()
