"""Saved measurements of a device. They replace estimates for the same model, width and picture size."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from snapgen_deploy.bundle.reader import bundle_name
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.names import DECODER, STEP, STUDENT, TEXT_ENCODER, in_order
from snapgen_deploy.latency.environment import host_key
from snapgen_deploy.latency.estimate.calibrate import write_json
from snapgen_deploy.latency.estimate.estimate_basis import HOST
from snapgen_deploy.latency.results import QUERY, Measurement, read_measurement
from snapgen_deploy.system.files import cache_root


def measured_dir(device_id: str) -> Path:
    """Folder of a device's measurements."""
    return cache_root() / "measured" / device_id


def device_of(measurement: Measurement) -> str:
    """The device that was measured: this host if the key matches, else the device that the bundle was exported for."""
    key = measurement.key
    here = host_key(key.backend, key.precision, key.threads)
    return HOST if (key.soc, key.os_build) == (here.soc, here.os_build) else measurement.device


def save_measured(measurement: Measurement, device_id: str | None = None) -> Path:
    """Save a measurement for a device (default: `device_of`). A later one of the same bundle and key replaces it.

    Raises:
        BadInput: if the file cannot be written.
    """
    m = measurement
    size = f"{m.resolution[0]}x{m.resolution[1]}"
    path = measured_dir(device_id or device_of(m)) / f"{m.bundle}-{m.width}-{size}-{m.steps}-{m.mode}-{m.key.id}.json"
    write_json(path, m.as_dict())
    return path


def find_measured(
    device_id: str,
    target: str,
    checkpoint: str,
    width: str,
    resolution: tuple[int, int],
    *,
    precision: str | None = None,
    threads: int | None = None,
    batch: int = 1,
) -> Measurement | None:
    """The newest saved measurement, in burst mode, of a checkpoint's width and picture size with a target on a device.

    `precision` and `threads` restrict the search if given; `batch` is how many pictures a call draws. The number of steps may
    differ: `from_measurement` adds or removes steps at the same cost. None if there is no match.
    """
    folder = measured_dir(device_id)
    for path in sorted(folder.glob("*.json"), key=lambda p: (-p.stat().st_mtime_ns, p.name)):
        try:
            m = read_measurement(path)
        except BadInput:  # of another version, or damaged
            continue
        same_model = m.bundle == bundle_name(checkpoint, m.device) and (m.width, m.resolution) == (width, resolution)
        alike = m.key.backend == target and precision in (None, m.key.precision) and threads in (None, m.key.threads)
        if same_model and alike and (m.batch, m.mode) == (batch, "burst") and m.samples():
            return m
    return None


def parts_ms(measurement: Measurement) -> dict[str, float]:
    """Median times in ms: text encoders, one step of the student, decoder, and the rest of a picture (`beside`)."""
    timed = [name for name in measurement.names if name != QUERY]
    parts = {name: statistics.median(measurement.samples(name) or [0.0]) for name in timed}
    steps = (measurement.steps - 1) * parts.get(STUDENT, 0.0)
    rest = statistics.median(measurement.samples(QUERY)) - sum(parts.values()) - steps
    return measured_parts(parts, max(0.0, rest))


def measured_parts(components: Mapping[str, float], beside: float) -> dict[str, float]:
    """Times in ms of the components and of the rest of a picture, under the names that estimates use.

    The student's time is that of one step. The time of an absent text encoder or decoder is 0.
    """
    known = {TEXT_ENCODER: 0.0, STUDENT: 0.0, DECODER: 0.0} | dict(components)
    return {STEP if name == STUDENT else name: known[name] for name in in_order(known)} | {"beside": beside}


def interval_ms(measurement: Measurement) -> tuple[float, float, float]:
    """Median of the pictures, and the smallest and largest median of a round; ms."""
    summary = measurement.summary(QUERY)
    return summary["p50"], min(summary["round_p50"]), max(summary["round_p50"])
