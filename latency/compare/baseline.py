"""Stored baselines: the runs of one model, device profile and device key, committed beside the code.

A stored number is second best, because it includes the differences between two days: 2.7 % from process to process on a shared
machine that is otherwise unchanged. So the unit is a run, not a round. `compare BASE CANDIDATE` detects smaller changes.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from snapgen_deploy.errors import BadInput, Refused
from snapgen_deploy.families.names import DECODER, STUDENT, TEXT_ENCODER
from snapgen_deploy.latency.compare.verdict import CONFIDENCE, Judged, Threshold, judged
from snapgen_deploy.latency.results import QUERY, Measurement
from snapgen_deploy.latency.stats import detectable, prediction_interval
from snapgen_deploy.system.documents import in_one_line
from snapgen_deploy.system.files import read_json, write_text
from snapgen_deploy.system.typed import read_as

_SCHEMA_VERSION = 1
STORED_STATISTICS = tuple(f"{name}_p50" for name in (QUERY, TEXT_ENCODER, STUDENT, DECODER))
FEWEST_RUNS, MOST_RUNS = 3, 20  # least number of runs to compare with; number of newest runs that are kept
DIGITS = 4  # significant digits in a stored file: keeps changes small in a review


@dataclass(frozen=True)
class _Baseline:
    """The contents of a stored file."""

    kind: Literal["baseline"]
    schema_version: Literal[1]
    runs: tuple[Measurement, ...]


def baseline_path(directory: Path, measurement: Measurement) -> Path:
    """File of a measurement's baseline: `<directory>/<bundle>-<width>/<key id>.json`."""
    return directory / f"{measurement.bundle}-{measurement.width}" / f"{measurement.key.id}.json"


def read_baseline(path: Path) -> tuple[Measurement, ...]:
    """Read the runs of a baseline, the oldest first.

    Raises:
        BadInput: if the file cannot be read, or is not a baseline of this version.
    """
    fix = "remove it, and store runs with --update-baseline"
    baseline, problems = read_as(_Baseline, read_json(path, fix))
    if baseline is None:
        raise BadInput(in_one_line(f"{path} is not a baseline of this version", problems, f"; {fix}"))
    return baseline.runs


def find_baseline(directory: Path, measurement: Measurement) -> tuple[Measurement, ...]:
    """The stored runs with the measurement's key; empty if nothing is stored for the bundle.

    Raises:
        Refused: if there are only runs with other keys.
        BadInput: if a file cannot be read.
    """
    path = baseline_path(directory, measurement)
    if path.is_file():
        return read_baseline(path)
    others = [runs[-1] for p in sorted(path.parent.glob("*.json")) if (runs := read_baseline(p))]
    if not others:
        return ()
    nearest = min(others, key=lambda m: len(m.key.differences(measurement.key)))
    differences = "; ".join(nearest.key.differences(measurement.key))
    raise Refused(
        f"not comparable: {path.parent} has no baseline of this device key, the nearest differs ({differences}); measure there "
        "or store runs of this machine with --update-baseline"
    )


def store_baseline(directory: Path, measurement: Measurement) -> tuple[Path, int]:
    """Add a run to the baseline of its key, and remove stored runs that drew another kind of picture.

    Returns:
        The file and the number of runs in it.

    Raises:
        BadInput: if the file cannot be read or written.
    """
    path = baseline_path(directory, measurement)
    before = read_baseline(path) if path.is_file() else ()
    runs = [*(m for m in before if not _unlike(m, measurement)), measurement][-MOST_RUNS:]
    data = {"schema_version": _SCHEMA_VERSION, "kind": "baseline", "runs": [_rounded(m.as_dict()) for m in runs]}
    text = json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_text(path, text, "choose another place with --baseline", parents=True)
    return path, len(runs)


def judge_stored(runs: Sequence[Measurement], candidate: Measurement, thresholds: Sequence[Threshold]) -> tuple[Judged, ...]:
    """Judge a candidate by the medians of whole runs: is its median outside of what another baseline run would give?

    Raises:
        BadInput: if a metric is not stored in baselines.
        Refused: if the runs did not draw the same kind of picture in the same way, or too few runs have a metric.
    """
    if difference := _unlike(runs[-1], candidate):
        raise Refused(f"not comparable: {difference}; measure both alike, or store new runs with --update-baseline")
    found = []
    for threshold in thresholds:
        if threshold.metric not in STORED_STATISTICS:
            raise BadInput(f"{threshold.metric} is not in stored baselines: expected one of {', '.join(STORED_STATISTICS)}")
        name = threshold.metric.removesuffix("_p50")
        before = [math.log(v) for m in runs if (v := m.summary(name).get("p50")) is not None]
        now = candidate.summary(name).get("p50")
        if len(before) < FEWEST_RUNS or now is None:
            raise Refused(f"{threshold.metric}: {len(before)} runs have it, {FEWEST_RUNS} and the candidate's are needed")
        ratios = [math.log(now) - b for b in before]
        spread = statistics.stdev(ratios) * math.sqrt(len(ratios) + 1)  # for one new value, not for a mean
        reach = detectable(spread, len(ratios), CONFIDENCE)
        base = math.exp(statistics.fmean(before))
        found.append(judged(threshold, base, now, ratios, prediction_interval(ratios, CONFIDENCE), reach))
    return tuple(found)


def _unlike(baseline: Measurement, candidate: Measurement) -> str:
    """How the pictures of two measurements differ; empty if they do not."""
    for name in ("resolution", "steps", "batch", "mode", "e2e_is"):
        ours, theirs = getattr(baseline, name), getattr(candidate, name)
        if ours != theirs:
            return f"the baseline has {name} {ours}, the candidate {theirs}"
    return ""


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return value
