"""The record of a measurement: raw samples and everything needed to judge them, as plain data. Times are in milliseconds.

One query is one picture: text encoder, every step of the student, decoder. The unit of analysis is the round: a block of
queries between two canaries, or between two cool-downs on a phone. An invalid round is kept with the reason.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import StrictBool

from snapgen_deploy.errors import BadInput
from snapgen_deploy.latency.stats import QUERIES_NEEDED, early_stopping, outliers
from snapgen_deploy.system.documents import in_one_line
from snapgen_deploy.system.files import read_json
from snapgen_deploy.system.typed import Amount, Count, Number, read_as

QUERY = "e2e"  # name of the whole picture among the timings; the others are roles: text_encoder, student (one step), decoder


@dataclass(frozen=True)
class RunProfile:
    """Length of a measurement: at least `queries` and `seconds`, at most `cap` seconds.

    The figures are those of MLPerf Mobile's run modes (mobile_app_open, flutter/assets/tasks.pbtxt). From 64 queries, p90 has a
    bound.
    """

    name: str
    queries: int
    seconds: float
    cap: float = 300.0


MEASURED_ON, ON_HOST = "measured_on", "host"  # key of a measurement's environment: `host` or the name of the link
RUN_PROFILES = {p.name: p for p in (RunProfile("rapid", 64, 6), RunProfile("quick", 128, 10), RunProfile("normal", 1024, 60))}


@dataclass(frozen=True)
class DeviceKey:
    """What two measurements must share to be comparable."""

    soc: str
    os_build: str
    backend: str  # target key, e.g. "onnx:cpu"
    runtime_version: str
    precision: str
    threads: Amount
    power_mode: str

    @property
    def id(self) -> str:
        """A short name for files; equal keys have equal ids."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def differences(self, other: DeviceKey) -> list[str]:
        """`field: this, not that` for every field that differs."""
        ours, theirs = asdict(self), asdict(other)
        return [f"{name}: {ours[name]}, not {theirs[name]}" for name in ours if ours[name] != theirs[name]]


@dataclass(frozen=True)
class Round:
    """One block of queries. `samples` maps names to times in ms, with `e2e` if whole pictures were timed."""

    samples: Mapping[str, tuple[Number, ...]]
    valid: StrictBool = True
    reason: str = ""  # why it is not valid
    canary_ms: tuple[Number, Number] | None = None  # before and after
    state: Mapping[str, str] = field(default_factory=dict)  # thermal status, battery, clocks, as the device reports them


@dataclass(frozen=True)
class Loads:
    """Times to load all components, in ms; None if not measured."""

    first_ever: Number | None = None  # nothing cached: after an install, or with the runtime's caches emptied
    cold: Number | None = None  # a new process, files in the operating system's cache
    warm: Number | None = None  # again in the same process


@dataclass(frozen=True)
class Measurement:
    """A finished measurement of one target of one bundle on one device."""

    bundle: str
    bundle_sha256: str  # hash of its SHA256SUMS
    device: str  # id of the device profile that the bundle was exported for
    width: str
    resolution: tuple[Count, Count]
    steps: Count
    key: DeviceKey
    profile: str  # rapid, quick, normal
    mode: str  # burst or sustained
    e2e_is: str  # "measured", or "composed" from components that were timed separately
    rounds: tuple[Round, ...]
    loads: Loads
    peak_bytes: Amount | None
    environment: Mapping[str, str]
    notes: tuple[str, ...] = ()
    batch: Count = 1  # pictures that a query draws
    kind: Literal["latency"] = "latency"  # kind of record
    schema_version: Literal[1] = 1

    def samples(self, name: str = QUERY) -> list[float]:
        """All samples of the valid rounds."""
        return [s for r in self.rounds if r.valid for s in r.samples.get(name, ())]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of what was timed, the whole picture first."""
        found = dict.fromkeys(n for r in self.rounds for n in r.samples)
        return tuple(sorted(found, key=lambda n: (n != QUERY, n)))

    @property
    def picture_p50(self) -> float | None:
        """The median time of a query, divided by the pictures that it draws; None without a sample."""
        values = self.samples()
        return statistics.median(values) / self.batch if values else None

    def summary(self, name: str = QUERY) -> dict[str, Any]:
        """Number, mean and median of the samples, MLPerf's early-stopping bounds of p90 and p99, spread, outliers.

        A bound is None if there are too few samples.
        """
        values = self.samples(name)
        if not values:
            return {"n": 0}
        medians = [statistics.median(r.samples[name]) for r in self.rounds if r.valid and r.samples.get(name)]
        return {
            "n": len(values),
            "mean": statistics.fmean(values),
            "p50": statistics.median(values),
            "p90_bound": early_stopping(values, 0.9),
            "p99_bound": early_stopping(values, 0.99),
            "minimum": min(values),
            "maximum": max(values),
            "round_p50": medians,
            "outliers": outliers(values),
            "queries_needed": {f"p{100 * p:g}": n for p, n in QUERIES_NEEDED.items() if p >= 0.9},
        }

    def validity(self, profile: RunProfile) -> dict[str, bool]:
        """MLPerf's flags: whether there are enough queries, enough time, and a bound of p90."""
        values = self.samples()
        return {
            "min_queries_met": len(values) >= profile.queries,
            "min_duration_met": sum(values) >= 1000 * profile.seconds,
            "early_stopping_met": early_stopping(values, 0.9) is not None,
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `read_measurement` reads it back."""
        return asdict(self)


def read_measurement(path: Path) -> Measurement:
    """Read a measurement from its JSON file; the summary in the file is ignored.

    Raises:
        BadInput: if the file cannot be read, or is not a measurement of this version.
    """
    fix = "give a file that `bench --json` or `--save` wrote"
    measurement, problems = read_as(Measurement, read_json(path, fix))
    if measurement is None:
        raise BadInput(in_one_line(f"{path} is not a latency measurement of this version", problems, f"; {fix}"))
    return measurement
