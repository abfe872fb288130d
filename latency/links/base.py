"""The protocol of a device that is not this host's CPU: what `bench --link` needs of it and nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from snapgen_deploy.export.base import Role
from snapgen_deploy.latency.results import DeviceKey, Loads


@dataclass(frozen=True)
class DeviceState:
    """The device's condition at one moment; None where the device does not say."""

    thermal: int | None = None  # 0 nominal ... as Android's thermal status; iOS: 0 nominal, 1 fair, 2 serious, 3 critical
    battery_percent: float | None = None
    battery_celsius: float | None = None
    low_power: bool | None = None
    notes: Mapping[str, str] | None = None  # anything else worth keeping, e.g. clocks

    def as_notes(self) -> dict[str, str]:
        """Flat text for `Round.state`."""
        named = {
            "thermal": self.thermal,
            "battery_percent": self.battery_percent,
            "battery_celsius": self.battery_celsius,
            "low_power": self.low_power,
        }
        return {name: str(value) for name, value in named.items() if value is not None} | dict(self.notes or {})


@dataclass(frozen=True)
class LinkJob:
    """What a device runs: the components of one target, with one file of raw input bytes per port, in the ports' order."""

    target: str  # e.g. "executorch:xnnpack"
    precision: str
    threads: int
    components: Mapping[Role, Path]  # role -> the artifact's main file
    files: Mapping[Role, tuple[Path, ...]]  # role -> all that belongs to it
    inputs: Mapping[Role, tuple[Path, ...]]
    calls: Mapping[Role, int]  # per picture: of the student one per step, of the others 1


@dataclass(frozen=True)
class SampleBlock:
    """One round on the device: samples in ms per role (one per call), or per "e2e" where whole pictures were timed."""

    samples: Mapping[str, tuple[float, ...]]
    before: DeviceState
    after: DeviceState
    peak_bytes: int | None = None


class Link(Protocol):
    """A device. Every method raises MeasurementFailed (exit 4) in one line where the device does not deliver."""

    name: str
    e2e_is: str  # "measured" where whole pictures are timed, "composed" where components are timed apart
    never_run_on_hardware: bool  # said in `--help` and in the measurement's notes

    def key(self, job: LinkJob) -> DeviceKey:
        """What the measurement must share with another to be comparable."""
        ...

    def environment(self) -> Mapping[str, str]:
        """Model, OS build, tool versions, as the device says them."""
        ...

    def state(self) -> DeviceState:
        """The condition now."""
        ...

    def prepare(self, job: LinkJob) -> None:
        """Push the files, set what must be set (fixed performance mode); nothing is set when it raises."""
        ...

    def load(self, job: LinkJob) -> Loads:
        """Time the three loads, as far as the device can."""
        ...

    def run(self, job: LinkJob, warmups: int, queries: int) -> SampleBlock:
        """`warmups` untimed and `queries` timed pictures' worth of calls, in one process per component at most."""
        ...

    def memory(self, job: LinkJob) -> int | None:
        """Peak resident bytes, in a pass of its own."""
        ...

    def restore(self) -> None:
        """Undo what `prepare` set and remove what it pushed; safe to call twice, and after a failure."""
        ...
