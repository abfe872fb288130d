"""Calibration of this host: micro-benchmarks through a target's own runtime, and the machine model that fits them best.

Every graph is exported and loaded like a bundle's component. Each round runs all graphs in turn, so that a slow minute of the
machine affects all alike; a graph's time is the median over rounds. With one thread, the processor time of this process is
measured, which excludes other processes; with more threads, the wall clock.

The fit: weighted non-negative least squares of relative errors, (sum of coefficient * feature) / measured = 1, with
the features of `machine.Rate` per kind of operation, one call, and the excess over the cache (Lawson & Hanson 1974;
scipy.optimize.nnls). The cache size is the power of two that fits best.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from snapgen_deploy.errors import MeasurementFailed
from snapgen_deploy.export.base import Component
from snapgen_deploy.export.registry import spec_of, target_of
from snapgen_deploy.latency.environment import host_key
from snapgen_deploy.latency.estimate.calibrate_graphs import benchmark_graphs
from snapgen_deploy.latency.estimate.cost import OpCost, trace_costs
from snapgen_deploy.latency.estimate.cost_components import spelling_of
from snapgen_deploy.latency.estimate.cost_ops import OP_KINDS
from snapgen_deploy.latency.estimate.machine import FEATURES, Machine, Rate, coefficients_of, excess
from snapgen_deploy.latency.results import DeviceKey
from snapgen_deploy.system.documents import refuse
from snapgen_deploy.system.files import cache_root, read_json, write_text
from snapgen_deploy.system.progress import Progress
from snapgen_deploy.system.typed import Number, read_as

ROUNDS = 9
BURST_SECONDS = 0.004  # a graph runs for about this long in every round
_ON_CHIP = tuple(2.0**n for n in range(17, 25))  # candidate cache sizes in bytes, 128 KiB to 16 MiB
_SCHEMA_VERSION = 1
COLUMNS = ("call", "spill", *(f"{kind}.{feature}" for kind in OP_KINDS for feature in FEATURES))


@dataclass(frozen=True)
class MicroBenchmark:
    """A timed list of operations, for the fit."""

    name: str
    ops: tuple[OpCost, ...]
    seconds: float
    weight: float = 1.0  # weight of its squared error


@dataclass(frozen=True)
class HostCalibration:
    """A fitted machine model with the measurements that it was fitted to."""

    key: DeviceKey
    machine: Machine
    fit_error: Number  # mean absolute relative error on these micro-benchmarks
    samples: Mapping[str, Number]  # name -> ms


def calibrate(target: str, threads: int, progress: Progress) -> HostCalibration:
    """Time all micro-benchmarks and fit the machine model.

    Raises:
        MeasurementFailed: if the target does not run here, or its times here would mean nothing.
    """
    if reason := unavailable(target):
        raise MeasurementFailed(f"{target}: {reason}")
    key = key_of(target, threads)
    with tempfile.TemporaryDirectory() as folder:
        with progress(f"{target}: exporting micro-benchmarks"):
            listed = benchmark_graphs(spelling_of(target).ops)
            ready = [prepare(g.name, g.component(), target, threads, Path(folder)) for g in listed]
        with progress(f"{target}: timing {len(ready)} micro-benchmarks, {ROUNDS} rounds"):
            seconds = timed([r.call for r in ready], threads)
    samples = [MicroBenchmark(g.name, r.ops, s, g.weight) for g, r, s in zip(listed, ready, seconds, strict=True)]
    machine, error = fit_machine(samples)
    return HostCalibration(key, machine, error, {s.name: 1000 * s.seconds for s in samples})


def unavailable(target: str) -> str | None:
    """Why a target cannot be calibrated here; None if it can."""
    if reason := spec_of(target).runtime.numbers_only:
        return reason
    found, variant = target_of(target)
    return found.unavailable(variant)


def key_of(target: str, threads: int) -> DeviceKey:
    """The key under which the calibration of a target on this host is stored."""
    return host_key(target, spec_of(target).precisions[0], threads)


@dataclass(frozen=True)
class Ready:
    """An exported and loaded network that is ready to be timed."""

    name: str
    ops: tuple[OpCost, ...]
    call: Callable[[], object]


def prepare(
    name: str, component: Component, target: str, threads: int, folder: Path, options: Mapping[str, str] = MappingProxyType({})
) -> Ready:
    """Export a component into a folder of its own, load it, and count its operations."""
    found, variant = target_of(target)
    place = folder / name.replace(" ", "-").replace(",", "")
    place.mkdir()
    artifact = found.export(component, variant, spec_of(target).precisions[0], place, options)
    run = found.open(artifact.path, threads=threads)
    feed = {p.name: e.numpy() for p, e in zip(component.inputs, component.example, strict=True)}
    return Ready(name, trace_costs(component, spelling_of(target).element), lambda: run(feed))


def timed(calls: Sequence[Callable[[], object]], threads: int, rounds: int = ROUNDS) -> list[float]:
    """Seconds of each call: the median over rounds that run all calls in turn."""
    clock = time.process_time_ns if threads == 1 else time.perf_counter_ns
    counts = []
    for call in calls:
        call()
        start = clock()
        call()
        counts.append(max(1, round(BURST_SECONDS * 1e9 / max(1, clock() - start))))
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, count, times in zip(calls, counts, found, strict=True):
            call()  # untimed, so that the caches do not hold the data of the previous graph
            start = clock()
            for _ in range(count):
                call()
            times.append((clock() - start) / count / 1e9)
    return [statistics.median(times) for times in found]


def features(ops: Sequence[OpCost], on_chip: float) -> np.ndarray:
    """The row of the design matrix for one call of a component; the columns are `COLUMNS`."""
    row = dict.fromkeys(COLUMNS, 0.0) | {"call": 1.0, "spill": excess(ops, on_chip, overlap=False)}
    for o in ops:
        for feature, value in zip(FEATURES, coefficients_of(o), strict=True):
            row[f"{o.kind}.{feature}"] += value
    return np.array([row[c] for c in COLUMNS])


def fit_machine(samples: Sequence[MicroBenchmark]) -> tuple[Machine, float]:
    """The machine with the smallest weighted sum of squared relative errors, all coefficients >= 0, and its mean error."""
    fitted = [_fit_with(samples, on_chip) for on_chip in _ON_CHIP]
    weights = np.array([s.weight for s in samples])
    machine, residual = min(fitted, key=lambda f: float((weights * np.square(f[1])).sum()))
    return machine, float(np.abs(residual).mean())


def _fit_with(samples: Sequence[MicroBenchmark], on_chip: float) -> tuple[Machine, np.ndarray]:
    """The best machine with this cache size, and its relative errors."""
    from scipy.optimize import nnls

    matrix = np.stack([features(s.ops, on_chip) / s.seconds for s in samples])
    scale = np.maximum(np.abs(matrix).max(0), 1e-300)  # columns differ by ten orders of magnitude
    root = np.sqrt([s.weight for s in samples])
    solution = nnls(root[:, None] * matrix / scale, root)[0] / scale
    found = dict(zip(COLUMNS, solution.tolist(), strict=True))
    rates: dict[str, Rate] = {kind: Rate(*(found[f"{kind}.{f}"] for f in FEATURES)) for kind in OP_KINDS}
    return Machine(rates, call=found["call"], on_chip=on_chip, spill=found["spill"]), matrix @ solution - 1


def calibration_path(key: DeviceKey) -> Path:
    """File of a key's calibration."""
    return cache_root() / "calibration" / f"{key.id}.json"


def store(calibration: HostCalibration) -> Path:
    """Store a calibration and return its file. A failed write leaves no partial file.

    Raises:
        BadInput: if the file cannot be written.
    """
    path = calibration_path(calibration.key)
    data = {"schema_version": _SCHEMA_VERSION, **asdict(calibration)}
    write_json(path, data)
    return path


def write_json(path: Path, data: object) -> None:
    """Write a JSON file of the cache. A failed write leaves no partial file.

    Raises:
        BadInput: if the file cannot be written.
    """
    text = json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_text(path, text, "point XDG_CACHE_HOME to another place", parents=True)


def load_calibration(key: DeviceKey) -> HostCalibration | None:
    """Load the stored calibration of a key; None if there is none, or only one of an older version.

    Raises:
        BadInput: if the file is damaged.
    """
    path = calibration_path(key)
    if not path.is_file():
        return None
    fix = "run `estimate --device host --calibrate` again"
    data = read_json(path, fix)
    if isinstance(data, dict) and data.get("schema_version") != _SCHEMA_VERSION:
        return None  # of an older version
    found, problems = read_as(HostCalibration, data)
    refuse(f"{path} is damaged", problems, f"; {fix}")
    return found
