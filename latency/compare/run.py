"""Runs a comparison: two bundles with each other, or one with stored runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapgen_deploy.bundle.draw import choose_target
from snapgen_deploy.bundle.reader import Bundle, check_hashes, open_bundle
from snapgen_deploy.device_profiles import load_profile, profile_ids
from snapgen_deploy.errors import BadInput, Refused
from snapgen_deploy.latency.compare.baseline import FEWEST_RUNS, baseline_path, find_baseline, judge_stored
from snapgen_deploy.latency.compare.compare import (
    CAP_SECONDS,
    Comparison,
    check_side,
    compare_bundles,
    guards_alone,
    read_side,
    refuse_unlike_pictures,
)
from snapgen_deploy.latency.compare.guards import guards_of
from snapgen_deploy.latency.compare.verdict import LOOKS, Threshold
from snapgen_deploy.latency.measure.host import measure_host
from snapgen_deploy.latency.measure.session import first_timed
from snapgen_deploy.latency.results import RUN_PROFILES, Measurement
from snapgen_deploy.system.progress import Progress


@dataclass(frozen=True)
class Wanted:
    """How to compare two bundles."""

    thresholds: Sequence[Threshold]
    target: str | None = None  # None: the first that can be timed on this machine
    guards: bool = True
    clock: bool = True
    order: str = "auto"
    max_rounds: int = LOOKS[-1]
    max_seconds: float = CAP_SECONDS
    threads: int = 1
    across: bool = False  # two bundles that differ on purpose

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of rounds after which the verdict is checked: at most as many as `LOOKS`, which the error rate is for."""
        return (*(n for n in LOOKS[:-1] if n < self.max_rounds), self.max_rounds)


def compare_paths(base_path: Path, candidate_path: Path, wanted: Wanted, progress: Progress) -> Comparison:
    """Compare guards and times of two bundles. Without times, `base_path` may be a manifest.json.

    Raises:
        BadInput: if a path is not a bundle, or the candidate lacks the target.
        GateFailed: if a bundle's files are not what was exported.
        Refused: if the two are not comparable.
        MeasurementFailed: if the target cannot be timed on this machine.
    """
    candidate = open_bundle(candidate_path)
    check_hashes(candidate)
    manifest = read_side(base_path)
    check_side(base_path)
    named = {g for m in (manifest, candidate.manifest) for g in failing_guards(m.get("device", {}))}
    guards = guards_of(manifest, candidate.manifest, named) if wanted.guards else ()
    if not wanted.clock:
        refuse_unlike_pictures(manifest, candidate.manifest)
        return guards_alone(base_path, candidate, guards)
    if base_path.is_file():
        raise BadInput(f"{base_path} has no files to time; give the bundle, or add --guards-only")
    base = open_bundle(base_path)
    return compare_bundles(
        base,
        candidate,
        _target(candidate, wanted.target),
        wanted.thresholds,
        guards,
        progress,
        threads=wanted.threads,
        order=wanted.order,
        looks=wanted.looks,
        cap=wanted.max_seconds,
        across=wanted.across,
    )


def measure_run(path: Path, target: str | None, threads: int, progress: Progress) -> Measurement:
    """Measure one run of a bundle, as baselines store it.

    Raises:
        BadInput: if the path is not a bundle, or it lacks the target.
        GateFailed: if its files are not what was exported.
        MeasurementFailed: if the target cannot be timed on this machine, or no round was valid.
    """
    bundle = open_bundle(path)
    check_hashes(bundle)
    return measure_host(bundle, _target(bundle, target), RUN_PROFILES["rapid"], "burst", threads, progress)


def compare_stored(
    path: Path, measured: Measurement, directory: Path, thresholds: Sequence[Threshold], missing: str
) -> Comparison:
    """Compare a run of the bundle at `path` with the stored runs of its key in `directory`.

    If too few are stored and `missing` is `warn`, the comparison has no metrics.

    Raises:
        Refused: if too few runs are stored and `missing` is `fail`, or the runs are not comparable.
        BadInput: if a metric is not stored in baselines, or a file cannot be read.
    """
    place, runs = baseline_path(directory, measured), find_baseline(directory, measured)
    if len(runs) < FEWEST_RUNS:
        line = f"{place} holds {len(runs)} runs, at least {FEWEST_RUNS} are needed; add one with --update-baseline"
        if missing == "fail":
            raise Refused(line)
        return Comparison(place, path, measured.key, "stored", 0, None, (), (), (line,))
    metrics = judge_stored(runs, measured, thresholds)
    notes = (f"compared with {len(runs)} stored runs, whose spread is in the interval; BASE CANDIDATE detects smaller changes",)
    rounds = sum(r.valid for r in measured.rounds)
    return Comparison(place, path, measured.key, "stored", rounds, None, metrics, (), notes)


def failing_guards(device: Mapping[str, Any]) -> tuple[str, ...]:
    """The guards that fail if they change, from the device profile at export.

    A manifest of an earlier version does not list them; then our own profile of the device is used.
    """
    if "guards" in device:
        return tuple(device["guards"])
    return load_profile(device["id"]).guards if device.get("id") in profile_ids() else ()


def _target(bundle: Bundle, wanted: str | None) -> str:
    return choose_target(bundle, wanted) if wanted else first_timed(bundle)
