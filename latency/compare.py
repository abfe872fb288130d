"""Comparing two bundles: deterministic guards before any clock, an A/A self-check, then rounds until the answer is clear."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from snapgen_deploy.bundle import SUMS, Bundle, open_bundle, refuse_misshapen, sha256_of
from snapgen_deploy.errors import BadInput, Refused
from snapgen_deploy.export.base import ROLES
from snapgen_deploy.latency.duel import DuelRound, RoundOf, Sides, abba, interleaved, mode_for
from snapgen_deploy.latency.environment import host_key, stamp_of_now
from snapgen_deploy.latency.guards import Guard, guard_verdict
from snapgen_deploy.latency.results import DeviceKey
from snapgen_deploy.latency.session import runs_here
from snapgen_deploy.latency.stats import detectable, t_interval
from snapgen_deploy.latency.verdict import CONFIDENCE, LOOKS, Judged, Threshold, judge, worst
from snapgen_deploy.progress import Progress

SCHEMA_VERSION = 1
SELF_CHECK_ROUNDS = (5, 15, 30)  # the next where one fails: an interrupted round weighs less among more
CAP_SECONDS = 170.0  # no more rounds are begun that would end later


@dataclass(frozen=True)
class SelfCheck:
    """Base against itself, in the same way: what this machine can resolve just now. Changes are relative."""

    rounds: int
    low: float
    high: float
    detectable: float  # with the most rounds that will be run
    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """The whole outcome."""

    base: Path
    candidate: Path
    key: DeviceKey
    mode: str  # interleaved, abba, stored, or guards where no clock ran
    rounds: int
    self_check: SelfCheck | None
    metrics: tuple[Judged, ...]
    guards: tuple[Guard, ...]
    notes: tuple[str, ...] = ()
    created: str | None = None  # ISO 8601, UTC
    commit: str | None = None  # of the working directory, where it is a git checkout

    @property
    def verdict(self) -> str:
        """`failed` for a guard that fails; else the worst of the metrics that may fail; a failed self-check is inconclusive."""
        if guard_verdict(self.guards) == "failed":
            return "failed"
        if self.self_check is not None and not self.self_check.passed:
            return "inconclusive"
        return worst([m.verdict for m in self.metrics if not m.warn])

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the reporters and the report."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "comparison",
            "base": _side(self.base),
            "candidate": _side(self.candidate),
            "target": self.key.backend,
            "key": asdict(self.key),
            "mode": self.mode,
            "rounds": self.rounds,
            "self_check": None if self.self_check is None else asdict(self.self_check),
            "metrics": [m.as_dict() for m in self.metrics],
            "guards": [asdict(g) for g in self.guards],
            "verdict": self.verdict,
            "notes": list(self.notes),
            "created": self.created,
            "commit": self.commit,
        }


def stamped(found: Comparison) -> Comparison:
    """The comparison with the time and the commit at which it was made: the report's history is ordered by them."""
    stamp = stamp_of_now()
    return replace(found, created=stamp["created"], commit=stamp.get("commit"))


def _side(path: Path) -> dict[str, str]:
    sums = path / SUMS
    return {"bundle": path.name, "sha256": sha256_of(sums) if sums.is_file() else ""}


def read_side(path: Path) -> Mapping[str, Any]:
    """The manifest of a bundle, or of a manifest.json alone (a stored export for the guards)."""
    if path.is_file():
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadInput(f"{path} is not readable JSON ({error}); give a bundle or its manifest.json") from None
        if not isinstance(data, dict) or "targets" not in data:
            raise BadInput(f"{path} is no manifest; give a bundle or its manifest.json")
        refuse_misshapen(path, data)
        return data
    return open_bundle(path).manifest


def guards_alone(base: Path, candidate: Bundle, guards: Sequence[Guard]) -> Comparison:
    """The outcome where no clock ran."""
    key = candidate.targets[0]
    return Comparison(base, candidate.path, host_key(key, candidate.precision(key), 0), "guards", 0, None, (), tuple(guards))


def refuse_unlike(base: Bundle, candidate: Bundle, key: str) -> None:
    """Refused (exit 3) where the two do not draw the same kind of picture on the same target."""
    for bundle in (base, candidate):
        if key not in bundle.targets:
            raise Refused(f"not comparable: {bundle.path} holds no target '{key}', only {', '.join(bundle.targets)}")
    refuse_unlike_pictures(base.manifest, candidate.manifest)


def refuse_unlike_pictures(base: Mapping[str, Any], candidate: Mapping[str, Any]) -> None:
    """Refused (exit 3) where two manifests are not of the same kind of picture: their graphs differ for that reason alone."""
    for what in ("resolution", "width"):
        if base.get(what) != candidate.get(what):
            said = f"base has {what} {base.get(what)}, candidate {candidate.get(what)}"
            raise Refused(f"not comparable: {said}; export both alike")
    steps = [len(m.get("schedule", {}).get("sigmas", ())) - 1 for m in (base, candidate)]
    if steps[0] != steps[1]:
        raise Refused(f"not comparable: base draws in {steps[0]} steps, candidate in {steps[1]}")


def compare_bundles(
    base: Bundle,
    candidate: Bundle,
    key: str,
    thresholds: Sequence[Threshold],
    guards: Sequence[Guard],
    progress: Progress,
    *,
    threads: int = 1,
    order: str = "auto",
    looks: Sequence[int] = LOOKS,
    cap: float = CAP_SECONDS,
) -> Comparison:
    """Run the clock. MeasurementFailed where the target does not run here, Refused where the two are not comparable."""
    refuse_unlike(base, candidate, key)
    runs_here(key)
    for threshold in thresholds:
        timed, parts = threshold.metric.rpartition("_")[0], candidate.artifacts(key)
        if timed in ROLES and timed not in parts:
            raise BadInput(f"{threshold.metric}: {candidate.path.name} has no {timed}, only {', '.join(parts)}")
    failing = any(not t.warn for t in thresholds)  # what only warns asks for no more rounds then
    mode = mode_for(key, order)
    one_round: RoundOf = interleaved if mode == "interleaved" else abba
    sides, start = Sides(base.path, candidate.path, key, threads), time.monotonic()
    with progress(f"{key}: base against itself, {SELF_CHECK_ROUNDS[0]} rounds or more"):
        check = self_check(Sides(base.path, base.path, key, threads), thresholds, one_round, looks, start + cap / 2)
    metrics: tuple[Judged, ...] = ()
    done: list[DuelRound] = []
    notes: list[str] = []
    for look in looks if check.passed else ():
        spent = time.monotonic() - start
        if done and spent + (look - len(done)) * spent / (check.rounds + len(done)) > cap:
            notes.append(f"stopped after {len(done)} rounds and {spent:.0f} s: {look} would take more than {cap:g} s")
            break
        with progress(f"{key}: base against candidate, rounds {len(done) + 1} to {look}"):
            done += [one_round(sides, number) for number in range(len(done), look)]
        metrics = tuple(_judge(t, done) for t in thresholds)
        if "inconclusive" not in {m.verdict for m in metrics if not m.warn or not failing}:
            break
    host = host_key(key, candidate.precision(key), threads)
    return Comparison(base.path, candidate.path, host, mode, len(done), check, metrics, tuple(guards), tuple(notes))


def _judge(threshold: Threshold, rounds: Sequence[DuelRound]) -> Judged:
    name = threshold.metric
    return judge(threshold, [r.base[name] for r in rounds], [r.candidate[name] for r in rounds])


def self_check(
    sides: Sides, thresholds: Sequence[Threshold], one_round: RoundOf, looks: Sequence[int], until: float
) -> SelfCheck:
    """Base against itself on the metric with the tightest limit, of those that may fail where there are such.

    It fails where the machine prefers one of two equal sides by more than half the limit, or where even the most rounds could
    not resolve the limit; a failure is looked at again with more rounds, since one in twenty comes by chance, as long as the
    time `until` (`time.monotonic`) has not come.
    """
    tightest = min([t for t in thresholds if not t.warn] or thresholds, key=lambda t: t.limit)
    ratios: list[float] = []
    for count in SELF_CHECK_ROUNDS:
        rounds = [one_round(sides, -1 - number) for number in range(len(ratios), count)]
        ratios += [math.log(r.candidate[tightest.metric] / r.base[tightest.metric]) for r in rounds]
        found = _checked(ratios, tightest.limit, max(looks))
        if found.passed or time.monotonic() > until:
            break
    return found


def _checked(ratios: Sequence[float], limit: float, most: int) -> SelfCheck:
    interval, bound = t_interval(ratios), math.log1p(limit)
    reach = detectable(statistics.stdev(ratios), most, CONFIDENCE)
    reason = ""
    if not interval.low <= 0 <= interval.high and not abs(interval.estimate) <= bound / 2:
        reason = f"base differs from itself by {100 * math.expm1(interval.estimate):+.1f} %"
    elif not reach <= bound:
        reason = f"this machine resolves {100 * math.expm1(reach):.1f} % at best just now, not {100 * limit:g} %"
    return SelfCheck(len(ratios), math.expm1(interval.low), math.expm1(interval.high), math.expm1(reach), not reason, reason)
