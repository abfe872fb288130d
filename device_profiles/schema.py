"""A device profile as plain frozen data: every figure has a unit and a source.

A figure that nobody has published is absent, never invented. `status` says how reliable one is:
`published` by the maker or in a paper, `derived` from published figures (the source says how), `anecdotal` (reported by
users), and, for budgets only, `chosen` by this project (the source gives the reason).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from snapgen_deploy.device_profiles.cores import CORES

DEVICE_KINDS = ("phone", "tablet", "desktop", "server")
STATUSES = ("published", "derived", "anecdotal")
BUDGET_STATUSES = (*STATUSES, "chosen")
LAYOUTS = ("token", "channels")
BYTES_IN = MappingProxyType({"MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30})

# Figures that a profile may have, with their units.
FIGURES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "memory": ("GB", "GiB"),
        "bandwidth": ("GB/s",),
        "cpu_cores": ("cores",),
        "cpu_clock": ("GHz",),
        "gpu_cores": ("cores",),
        "gpu_memory": ("GB", "GiB"),
        "gpu_bandwidth": ("GB/s",),
        "gpu_fp16": ("TFLOPS",),
        "gpu_fp32": ("TFLOPS",),
        "npu_cores": ("cores",),
        "npu_int8": ("TOPS",),
        "npu_fp16": ("TFLOPS",),
        "npu_ops": ("TOPS",),  # where the maker does not say at which precision
        "power": ("W",),
        "soc_model": ("id",),  # Qualcomm's number of the chip, for its compiler
        "htp_arch": ("version",),  # of the Hexagon NPU
    }
)

# What reads a figure besides `devices`, which shows all of them.
FIGURE_USES: Mapping[str, str] = MappingProxyType(
    {
        "cpu_clock": "estimates for CPU targets: clock of the fastest cores",
        "cpu_cores": "estimates for CPU targets: cores that compute; without it one",
        "bandwidth": "estimates: main memory",
        "npu_ops": "estimates for Apple's chips",
        "soc_model": "Qualcomm's compiler",
        "htp_arch": "Qualcomm's compiler",
    }
)

# Deterministic guards of `compare`: what is compared with another export. A profile names those that fail on a change.
GUARDS: Mapping[str, str] = MappingProxyType(
    {
        "bytes": "bytes of a component's files",
        "ops": "histogram of operators",
        "macs": "multiply-accumulates of one call",
        "placement": "delegate partitions and node placement",
        "portable_ops": "operators left outside every delegate",
        "lint": "findings of the Neural Engine lint",
        "weight_dtypes": "weights per stored dtype",
        "precision": "precision of the target",
        "attention_form": "kernel form of the local attention",
        "versions": "versions of the tools that wrote the files",
    }
)


def spaced(deployment: str) -> str:
    """The name of a system with a space before its version.

    >>> spaced("iOS18")
    'iOS 18'
    """
    name = deployment.rstrip("0123456789.")
    return f"{name} {deployment.removeprefix(name)}".strip()


@dataclass(frozen=True)
class Figure:
    """One number with its unit and source."""

    value: float
    unit: str
    status: str
    source: str

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit}"


@dataclass(frozen=True)
class ProfileTarget:
    """One export target of a device, as `export` makes it by default."""

    target: str
    variant: str  # "" if the target has none
    precision: str
    layout: str  # "token" or "channels"
    options: tuple[tuple[str, str], ...] = ()
    limits: tuple[tuple[str, float], ...] = ()  # fields of `Limits` that override the precision's

    @property
    def system(self) -> str:
        """The oldest system that runs its files, such as `iOS 18`; "" without an option `deployment`."""
        return spaced(dict(self.options).get("deployment", ""))

    @property
    def key(self) -> str:
        """`name` or `name:variant`, as on the command line."""
        return f"{self.target}:{self.variant}" if self.variant else self.target

    def as_dict(self) -> dict[str, Any]:
        """Plain data, in the shape of the TOML file."""
        return {
            "target": self.key,
            "precision": self.precision,
            "layout": self.layout,
            "options": dict(self.options),
            "limits": dict(self.limits),
            "system": self.system,
        }


@dataclass(frozen=True)
class Offer:
    """A target that is not exported by default, and the source that says that the device runs it."""

    target: ProfileTarget
    source: str


@dataclass(frozen=True)
class Isa:
    """The kinds of cores that may run a model's threads, by their names in `cores.CORES`, and who says so."""

    cores: tuple[str, ...]
    source: str

    def lacking(self, arithmetic: str) -> tuple[str, ...]:
        """The cores without an arithmetic, as their maker writes them.

        >>> Isa(("cortex-a76", "cortex-a53"), "").lacking("fp16")
        ('Cortex-A53',)
        """
        return tuple(CORES[name].title for name in self.cores if arithmetic not in CORES[name].arithmetic)


@dataclass(frozen=True)
class LatencyBasis:
    """Known times on this device, for one model, one picture size and one target only."""

    preset: str  # name of the model preset whose architecture was timed
    resolution: tuple[int, int]  # picture height, width in pixels
    target: str  # key of the target that was timed
    step: Mapping[str, Figure]  # width -> ms of one denoising step
    decoder: Figure  # ms

    def picture_ms(self, width: str, steps: int) -> float | None:
        """Estimated ms of one picture: the steps and the decoder; None for a width without a figure."""
        return steps * self.step[width].value + self.decoder.value if width in self.step else None


@dataclass(frozen=True)
class Profile:
    """A device: its name and chip, its figures, the targets that are exported by default, and the budgets of a model."""

    id: str
    name: str
    kind: str
    soc: str
    os: str
    os_minimum: str
    source: str  # of name, chip and system
    figures: Mapping[str, Figure]
    targets: tuple[ProfileTarget, ...]  # in order of preference
    memory_budget: Figure | None
    latency_budget: Figure | None  # ms of one picture
    latency: LatencyBasis | None
    guards: tuple[str, ...] = ()  # keys of GUARDS: a change of one fails `compare`
    notes: tuple[str, ...] = ()
    offers: tuple[Offer, ...] = ()  # further targets that the device runs; exported with `--target`
    isa: Isa | None = None  # None: not known

    @property
    def memory_budget_bytes(self) -> int | None:
        """The memory that a model may use, in bytes."""
        budget = self.memory_budget
        return None if budget is None else round(budget.value * BYTES_IN[budget.unit])

    def with_memory_budget(self, count: int) -> Profile:
        """The same device with a memory budget of `count` bytes."""
        return replace(self, memory_budget=Figure(count / 10**9, "GB", "chosen", "--memory-budget"))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`, in the shape of the TOML file."""
        budget = {"memory": self.memory_budget, "latency": self.latency_budget}
        data: dict[str, Any] = {
            "id": self.id,
            "name": self.name,
            "kind": self.kind,
            "soc": self.soc,
            "source": self.source,
            "notes": list(self.notes),
            "guards": list(self.guards),
            "os": {"name": self.os, "minimum": self.os_minimum},
            "figures": {name: vars(figure) for name, figure in self.figures.items()},
            "budget": {name: vars(figure) for name, figure in budget.items() if figure is not None},
            "targets": [t.as_dict() for t in self.targets],
            "offers": [o.target.as_dict() | {"source": o.source} for o in self.offers],
        }
        if self.isa is not None:
            data["isa"] = {"cores": list(self.isa.cores), "source": self.isa.source}
        if self.latency is not None:
            data["latency"] = {
                "preset": self.latency.preset,
                "resolution": list(self.latency.resolution),
                "target": self.latency.target,
                "step": {width: vars(figure) for width, figure in self.latency.step.items()},
                "decoder": vars(self.latency.decoder),
            }
        return data
