"""The protocol of a device that `bench --link` measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from snapgen_deploy.export.base import Role
from snapgen_deploy.latency.results import DeviceKey, Loads


@dataclass(frozen=True)
class DeviceState:
    """The device's condition at one moment; None for what the device does not report."""

    thermal: int | None = None  # 0 is nominal; Android: thermal status; iOS: 1 fair, 2 serious, 3 critical
    battery_percent: float | None = None
    battery_celsius: float | None = None
    low_power: bool | None = None
    notes: Mapping[str, str] | None = None  # other facts, e.g. clocks

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
    """What a device is to run: the components of one target, with one file of raw input bytes per port, in the ports' order."""

    target: str  # e.g. "executorch:xnnpack"
    precision: str
    threads: int
    components: Mapping[Role, Path]  # role -> the artifact's main file
    files: Mapping[Role, tuple[Path, ...]]  # role -> all of its files
    inputs: Mapping[Role, tuple[Path, ...]]
    calls: Mapping[Role, int]  # calls per picture: one per step for the student, 1 for the others


@dataclass(frozen=True)
class SampleBlock:
    """One round on the device: samples in ms by role (one per call), and under "e2e" if whole pictures were timed."""

    samples: Mapping[str, tuple[float, ...]]
    before: DeviceState
    after: DeviceState
    peak_bytes: int | None = None


class Link(Protocol):
    """A device. Every method may raise MeasurementFailed (exit code 4) if the device does not deliver."""

    name: str
    e2e_is: str  # "measured" if whole pictures are timed, "composed" if components are timed separately
    never_run_on_hardware: bool  # stated in `--help` and in the measurement's notes

    def key(self, job: LinkJob) -> DeviceKey:
        """What two measurements must share to be comparable."""
        ...

    def environment(self) -> Mapping[str, str]:
        """Model, OS build and tool versions, as the device reports them."""
        ...

    def state(self) -> DeviceState:
        """The current condition."""
        ...

    def prepare(self, job: LinkJob) -> None:
        """Push the files and change settings (fixed performance mode). If it raises, nothing stays changed."""
        ...

    def load(self, job: LinkJob) -> Loads:
        """Time the three kinds of load, as far as the device can."""
        ...

    def run(self, job: LinkJob, warmups: int, queries: int) -> SampleBlock:
        """Run the calls of `warmups` untimed and `queries` timed pictures, in at most one process per component."""
        ...

    def memory(self, job: LinkJob) -> int | None:
        """Peak resident memory in bytes, measured in a separate pass; None if the device cannot measure it."""
        ...

    def restore(self) -> None:
        """Undo what `prepare` changed and remove what it pushed. May be called twice, and after a failure."""
        ...
