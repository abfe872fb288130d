"""The record of an export target for general code: frozen plain data, beside each target.

A record needs neither its target's backend nor torch, so that listing devices and targets starts quickly. Only `name`,
`implementation`, `precisions`, `layout` and `suffix` have no default; the defaults are conservative: the target needs much
memory, is timed on this host, and no link supports it. `snapgen_deploy.export.registry` lists the records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from snapgen_deploy.extras import Extra
    from snapgen_deploy.sparse import Layout, OpForm, UpsampleForm

_Basis = Literal["neural_engine", "arm_cpu"]


@dataclass(frozen=True)
class Writing:
    """How networks are written for a target."""

    ops: OpForm = "spelled"  # operations of the token layout
    half_ops: OpForm = "half"  # the same at precision fp16
    upsample: UpsampleForm | None = None  # None: the layout's own
    forms: tuple[str, ...] = ("loop", "batched", "per_head")  # of the student's local attention, for `export --tune`
    attentions: tuple[str, ...] = ()  # values of the target's option `attention`, for `export --tune`
    text_form: str = "per_head"  # of the text encoder's attention

    def ops_at(self, precision: str) -> OpForm:
        """The operations of the token layout at a precision."""
        return self.half_ops if precision == "fp16" else self.ops


@dataclass(frozen=True)
class Cost:
    """Memory of a process: bytes without a network, per byte of its fp32 weights, and per byte of its activations."""

    base: int
    weights: float
    activations: float = 0.0

    def of(self, weights: int, activations: int) -> int:
        """Bytes for a network with so many bytes of weights and activations.

        >>> Cost(1000, 2.0, 0.5).of(weights=100, activations=10)
        1205
        """
        return self.base + round(self.weights * weights + self.activations * activations)


@dataclass(frozen=True)
class Memory:
    """Peak memory of an export on the host. The defaults are for a target that was not measured."""

    converting: Cost = Cost(1_000_000_000, 4.0)  # of the process that converts one component; activations do not count
    checking: Cost = Cost(1_000_000_000, 4.0, 5.0)  # of the process that runs the saved files, all components at once
    at_precision: Mapping[str, Cost] = field(default_factory=dict)  # of converting, for precisions that differ
    loop: int = 0  # additional bytes to convert a student whose local attention is a loop over blocks
    # Of a network that stays on disk, per byte of its fp32 weights and, in place of activations, of its largest tensor in fp32.
    converting_by_tensor: tuple[Cost, ...] = (Cost(1_000_000_000, 4.0),)  # of its stages, of which the largest counts
    checking_by_tensor: Cost = Cost(0, 4.0)  # what it adds to the process that runs the saved files
    # Additional bytes to convert with an option (its name and value), per byte of the component's activations.
    at_option: Mapping[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Runtime:
    """The runtime of a target's files on this host, and whether its times there are meaningful."""

    package: str = "torch"  # whose version a measurement on this host records
    module: str = ""  # imported before a load is timed, since an app imports no Python
    preload: tuple[str, ...] = ()  # modules that start no thread: they may be imported in the process that rounds fork from
    shared_process: bool = False  # runs two models in one process at their usual speed
    numbers_only: str = ""  # why its times on this host say nothing about a device; "" if they do
    instead: str = "measure another target of the bundle (--target)"  # what to do instead, if `numbers_only` is set
    host_default: bool = False  # the default target for this host; exactly one target is


@dataclass(frozen=True)
class OlderSystems:
    """Systems that read a target's files, but not those with several picture sizes."""

    deployments: tuple[str, ...]  # values of the option `deployment`
    needed: str  # the first systems that read those, for messages


@dataclass(frozen=True)
class OneUnit:
    """Every node of a file runs on one processing unit."""

    unit: str
    gate: str  # name of the gate that counts nodes elsewhere


@dataclass(frozen=True)
class OneDelegate:
    """No operator over tokens or pixels runs outside the delegate, except operators `at_ports` around a single delegate."""

    at_ports: str = ""


@dataclass(frozen=True)
class TargetSpec:
    """An export target: its name, what it offers, and what it costs."""

    name: str
    implementation: str  # "module:Class", a `snapgen_deploy.export.base.Target`; imported only when used
    precisions: tuple[str, ...]  # the first is the default
    layout: Layout  # the best one for the student's graph
    suffix: str  # of an artifact's main file
    variant: str = ""  # "" where the name has no variants
    calibrated: tuple[str, ...] = ()  # precisions whose quantiser needs real inputs
    by_tensor: tuple[str, ...] = ()  # precisions at which it reads and stores one weight after the other
    palette_bits: tuple[int, ...] = ()  # bits of an index that `mixed` may choose; () without mixed precision
    loaded_as: Mapping[str, str] = field(default_factory=dict)  # precision -> precision of its weights in the device's memory
    one_size: str = ""  # why it cannot hold several picture sizes; "" if it can
    one_picture: str = "files for a device draw one picture in a call"  # why a call draws one only; "" for any number
    older_systems: OlderSystems | None = None
    from_figures: tuple[str, ...] = ()  # figures of a profile that become options of the same name; all are required
    folders: Mapping[str, str] = field(default_factory=dict)  # value of the option `folders` -> module that arranges the files
    # Apps of `snapgen_deploy.apps.registry` that draw with its files -> the class of the app that runs them, if it has one
    apps: Mapping[str, str] = field(default_factory=dict)
    writing: Writing = field(default_factory=Writing)
    memory: Memory = field(default_factory=Memory)
    tools: tuple[str, ...] = ()  # packages whose version may change a converted file
    runtime: Runtime = field(default_factory=Runtime)
    links: tuple[str, ...] = ()  # values of `bench --link` that run its files
    machines: tuple[str, ...] = ()  # other machines that run its files here, by their names in `snapgen_deploy.machines`
    also_on: tuple[str, ...] = ()  # those of `machines` that every check runs them on as well
    basis: _Basis | None = None  # basis of an estimate of its time on a device without measurements
    extra: Extra | None = None  # the extra that installs its tools
    # precision -> arithmetic that every core must have (`device_profiles.cores`): its runtime refuses the files on others
    arithmetic: Mapping[str, str] = field(default_factory=dict)
    placement: OneUnit | OneDelegate | None = None  # None: its files do not say where operators run
    closed: str = "its files show no value between inputs and outputs"  # why `doctor --layers` cannot read its inner values

    @property
    def key(self) -> str:
        """`name` or `name:variant`, as on the command line."""
        return f"{self.name}:{self.variant}" if self.variant else self.name

    @property
    def variants(self) -> tuple[str, ...]:
        """The variant; () where there is none."""
        return (self.variant,) if self.variant else ()
