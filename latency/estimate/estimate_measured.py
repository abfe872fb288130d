"""Saved measurements of a device: from then on they stand in for estimates of the same model, width and picture size."""

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
    """Where the measurements of a device are kept."""
    return cache_root() / "measured" / device_id


def device_of(measurement: Measurement) -> str:
    """The device that was measured: this host where the key is this host's, else the one the bundle was exported for."""
    key = measurement.key
    here = host_key(key.backend, key.precision, key.threads)
    return HOST if (key.soc, key.os_build) == (here.soc, here.os_build) else measurement.device


def save_measured(measurement: Measurement, device_id: str | None = None) -> Path:
    """Keep a measurement for a device (`device_of` it when left out); a later one of the same bundle and key replaces it."""
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
) -> Measurement | None:
    """The newest measurement of a checkpoint's width and picture size with a target on a device, in bursts; else None.

    `precision` and `threads` restrict to these. Any number of steps is taken: `from_measurement` adds or removes steps
    of the same cost.
    """
    folder = measured_dir(device_id)
    for path in sorted(folder.glob("*.json"), key=lambda p: (-p.stat().st_mtime_ns, p.name)):
        try:
            m = read_measurement(path)
        except BadInput:  # of another version, or damaged: as good as none
            continue
        same_model = m.bundle == bundle_name(checkpoint, m.device) and (m.width, m.resolution) == (width, resolution)
        alike = m.key.backend == target and precision in (None, m.key.precision) and threads in (None, m.key.threads)
        if same_model and alike and m.mode == "burst" and m.samples():
            return m
    return None


def parts_ms(measurement: Measurement) -> dict[str, float]:
    """Medians: text encoders, one step of the student, decoder, and what a picture takes beside them."""
    timed = [name for name in measurement.names if name != QUERY]
    parts = {name: statistics.median(measurement.samples(name) or [0.0]) for name in timed}
    steps = (measurement.steps - 1) * parts.get(STUDENT, 0.0)
    rest = statistics.median(measurement.samples(QUERY)) - sum(parts.values()) - steps
    return measured_parts(parts, max(0.0, rest))


def measured_parts(components: Mapping[str, float], beside: float) -> dict[str, float]:
    """Times in ms of the components and of what a picture takes beside them, under the names that estimates have for them.

    The student counts one step. Of a text encoder or a decoder that there is not, 0.
    """
    known = {TEXT_ENCODER: 0.0, STUDENT: 0.0, DECODER: 0.0} | dict(components)
    return {STEP if name == STUDENT else name: known[name] for name in in_order(known)} | {"beside": beside}


def interval_ms(measurement: Measurement) -> tuple[float, float, float]:
    """Median of the pictures, and the range of the rounds' medians around it."""
    summary = measurement.summary(QUERY)
    return summary["p50"], min(summary["round_p50"]), max(summary["round_p50"])
