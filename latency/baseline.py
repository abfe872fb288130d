"""Stored baselines: one measurement per model, device profile and device key, committed beside the code.

A stored number is the second-best guard: what differs between two days is in it too. `compare BASE CANDIDATE` is the best.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from snapgen_deploy.errors import BadInput, Refused
from snapgen_deploy.files import write_text
from snapgen_deploy.latency.results import QUERY, Measurement, read_measurement
from snapgen_deploy.latency.stats import detectable, welch_interval
from snapgen_deploy.latency.verdict import CONFIDENCE, Judged, Threshold, decide

STORED_STATISTICS = tuple(f"{name}_p50" for name in (QUERY, "text_encoder", "student", "decoder"))
DIGITS = 4  # significant digits in a stored file: keeps changes small in a review


def path_of(directory: Path, measurement: Measurement) -> Path:
    """Where the baseline of a measurement lies: `<dir>/<bundle>-<width>/<key id>.json`."""
    return directory / f"{measurement.bundle}-{measurement.width}" / f"{measurement.key.id}.json"


def find_baseline(directory: Path, measurement: Measurement) -> Measurement | None:
    """The baseline with the same key. Refused (exit 3) where there are only baselines of other keys; None where none is."""
    path = path_of(directory, measurement)
    if path.is_file():
        return read_measurement(path)
    others = [read_measurement(p) for p in sorted(path.parent.glob("*.json"))]
    if not others:
        return None
    nearest = min(others, key=lambda m: len(m.key.differences(measurement.key)))
    said = "; ".join(nearest.key.differences(measurement.key))
    raise Refused(
        f"not comparable: {path.parent} has no baseline of this device key, the nearest differs ({said}); measure there, "
        "or store one for this machine with --update-baseline"
    )


def store_baseline(directory: Path, measurement: Measurement) -> Path:
    """Write the measurement as the baseline of its key; rounded, sorted, whole or not at all."""
    path = path_of(directory, measurement)
    text = json.dumps(_rounded(measurement.as_dict()), indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_text(path, text, "choose another place with --baseline", parents=True)
    return path


def judge_stored(baseline: Measurement, candidate: Measurement, thresholds: Sequence[Threshold]) -> tuple[Judged, ...]:
    """Verdicts from the medians of the rounds on both sides, unpaired (Welch). BadInput for a metric that is not stored.

    Refused where the two did not draw the same kind of picture in the same way.
    """
    for name in ("resolution", "steps", "mode", "e2e_is"):
        ours, theirs = getattr(baseline, name), getattr(candidate, name)
        if ours != theirs:
            said = f"the baseline has {name} {ours}, the candidate {theirs}"
            raise Refused(f"not comparable: {said}; measure alike, or store a new one with --update-baseline")
    found = []
    for threshold in thresholds:
        if threshold.metric not in STORED_STATISTICS:
            raise BadInput(f"{threshold.metric} is not in stored baselines: expected one of {', '.join(STORED_STATISTICS)}")
        name = threshold.metric.removesuffix("_p50")
        before, after = ([math.log(v) for v in m.summary(name).get("round_p50", ())] for m in (baseline, candidate))
        if min(len(before), len(after)) < 2:
            raise Refused(f"{threshold.metric}: {len(before)} and {len(after)} valid rounds, two on each side are needed")
        interval = welch_interval(after, before, CONFIDENCE)
        spread = math.sqrt(statistics.variance(before) + statistics.variance(after))
        found.append(
            Judged(
                name=threshold.metric,
                base_ms=math.exp(statistics.fmean(before)),
                candidate_ms=math.exp(statistics.fmean(after)),
                change=math.expm1(interval.estimate),
                low=math.expm1(interval.low),
                high=math.expm1(interval.high),
                detectable=math.expm1(detectable(spread, min(len(before), len(after)), CONFIDENCE)),
                limit=threshold.limit,
                warn=threshold.warn,
                verdict=decide(interval.estimate, interval.low, interval.high, math.log1p(threshold.limit)),
                rounds=tuple(after),
            )
        )
    return tuple(found)


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return value
