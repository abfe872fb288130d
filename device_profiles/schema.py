"""What a device profile says: plain frozen data, every figure with its unit and its source.

A figure that nobody has published is absent, never invented. `status` says how far to trust one:
`published` by the maker or in a paper, `derived` from published figures (the source says how), `anecdotal` (reported by
users), and, for budgets only, `chosen` by this project (the source gives the reason).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

DEVICE_KINDS = ("phone", "tablet", "desktop", "server")
STATUSES = ("published", "derived", "anecdotal")
BUDGET_STATUSES = (*STATUSES, "chosen")
LAYOUTS = ("token", "channels")
BYTES_IN = MappingProxyType({"MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30})

# Figures that a profile may give, with the units that each admits.
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
        "soc_model": ("id",),  # Qualcomm's number of the chip, which its compiler takes
        "htp_arch": ("version",),  # of the Hexagon NPU
    }
)

# Deterministic guards of `compare`: what is held against another export. A profile names those whose change fails.
GUARDS: Mapping[str, str] = MappingProxyType(
    {
        "bytes": "size of a component's files",
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
    """`iOS18` -> `iOS 18`."""
    name = deployment.rstrip("0123456789.")
    return f"{name} {deployment.removeprefix(name)}".strip()


@dataclass(frozen=True)
class Figure:
    """One number with its unit and where it is from."""

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
    variant: str  # "" where the target has none
    precision: str
    layout: str  # "token" or "channels"
    options: tuple[tuple[str, str], ...] = ()
    limits: tuple[tuple[str, float], ...] = ()  # names of `Limits` in place of the precision's own

    @property
    def system(self) -> str:
        """The oldest system that runs its files, such as `iOS 18`, from its deployment option; "" where nothing says."""
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
    """A target that is not exported by default, and what says that the device runs it."""

    target: ProfileTarget
    source: str


@dataclass(frozen=True)
class LatencyBasis:
    """Known times on this device: they hold for one model, one picture size and one target, and for nothing else."""

    preset: str  # name of the model preset whose architecture was timed
    resolution: tuple[int, int]  # picture height, width in pixels
    target: str  # key of the target that was timed
    step: Mapping[str, Figure]  # width -> ms of one denoising step
    decoder: Figure  # ms

    def picture_ms(self, width: str, steps: int) -> float | None:
        """Estimate for one picture, ms: steps times one step, and the decoder; None for a width without a figure."""
        return steps * self.step[width].value + self.decoder.value if width in self.step else None


@dataclass(frozen=True)
class Profile:
    """A device: what it is, what is known of it, what is exported for it by default, and what a model may cost there."""

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
    guards: tuple[str, ...] = ()  # names out of GUARDS: a change of these fails `compare`
    notes: tuple[str, ...] = ()
    offers: tuple[Offer, ...] = ()  # targets that the device runs, too, exported where `--target` asks for them

    @property
    def memory_budget_bytes(self) -> int | None:
        """The memory that a model may take, in bytes."""
        budget = self.memory_budget
        return None if budget is None else round(budget.value * BYTES_IN[budget.unit])

    def with_memory_budget(self, count: int) -> Profile:
        """The same device for an app that may take `count` bytes, whatever the profile's budget."""
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
        if self.latency is not None:
            data["latency"] = {
                "preset": self.latency.preset,
                "resolution": list(self.latency.resolution),
                "target": self.latency.target,
                "step": {width: vars(figure) for width, figure in self.latency.step.items()},
                "decoder": vars(self.latency.decoder),
            }
        return data
