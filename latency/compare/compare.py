"""Compares two bundles: deterministic guards first, then timed rounds with an A/A self-check, until the answer is clear."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from snapgen_deploy.bundle.reader import MANIFEST, SUMS, Bundle, check_hashes, open_bundle
from snapgen_deploy.bundle.schema import refuse_misshapen
from snapgen_deploy.errors import BadInput, Refused
from snapgen_deploy.latency.compare.duel import PAIRS, PAIRS_OF_MEDIANS, DuelRound, RoundOf, Sides, abba, interleaved, mode_for
from snapgen_deploy.latency.compare.guards import Guard, guard_verdict
from snapgen_deploy.latency.compare.self_check import SelfCheck, self_check, worst_check
from snapgen_deploy.latency.compare.verdict import LOAD, LOOKS, Judged, Threshold, judge_metric, worst
from snapgen_deploy.latency.environment import host_key, stamp_of_now
from snapgen_deploy.latency.measure.session import runs_here
from snapgen_deploy.latency.results import QUERY, DeviceKey
from snapgen_deploy.plan.sizes import size_name
from snapgen_deploy.system.documents import several
from snapgen_deploy.system.files import is_file, read_json, sha256_of
from snapgen_deploy.system.host_memory import available_bytes
from snapgen_deploy.system.progress import Progress

_SCHEMA_VERSION = 1
GUARDS_ALONE = "guards"  # mode of a comparison without times
ACROSS = Threshold(f"{QUERY}_p50", 0.05)  # what is timed where no limit is given, and what counts as alike
CAP_SECONDS = 170.0  # rounds that would end later are not started
FEWEST_PAIRS = 3  # calls of each side in a round, if a picture takes long


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison."""

    base: Path
    candidate: Path
    key: DeviceKey
    mode: str  # interleaved, abba, stored, or GUARDS_ALONE
    rounds: int
    self_check: SelfCheck | None
    metrics: tuple[Judged, ...]
    guards: tuple[Guard, ...]
    notes: tuple[str, ...] = ()
    created: str | None = None  # ISO 8601, UTC
    commit: str | None = None  # commit of the working directory, if it is a git checkout
    across: bool = False  # two bundles that differ on purpose: which is faster?

    @property
    def verdict(self) -> str:
        """With `across` that of the first metric: slower, faster, alike or inconclusive. Without it:
        `failed` if a guard fails, else the worst verdict of the metrics that can fail; inconclusive if times are missing."""
        if guard_verdict(self.guards) == "failed":
            return "failed"
        if not self.metrics and self.mode != GUARDS_ALONE:
            return "inconclusive"
        if self.across:
            return self.metrics[0].verdict
        return worst([m.verdict for m in self.metrics if not m.warn])

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the reporters and the report."""
        return {
            "schema_version": _SCHEMA_VERSION,
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
            "across": self.across,
            "created": self.created,
            "commit": self.commit,
        }


def stamped(found: Comparison) -> Comparison:
    """The comparison with the current time and commit, which order the report's history."""
    stamp = stamp_of_now()
    return replace(found, created=stamp["created"], commit=stamp.get("commit"))


def _side(path: Path) -> dict[str, str]:
    sums = path / SUMS
    return {"bundle": path.resolve().name, "sha256": sha256_of(sums) if sums.is_file() else ""}


def read_side(path: Path) -> Mapping[str, Any]:
    """Read the manifest of a bundle, or a single manifest.json (a stored export, for the guards).

    Raises:
        BadInput: if it cannot be read or is not a manifest.
    """
    if is_file(path):
        data = read_json(path, "give a bundle or its manifest.json")
        if not isinstance(data, dict) or "targets" not in data:
            raise BadInput(f"{path} is not a manifest; give a bundle or its manifest.json")
        refuse_misshapen(path, data)
        return data
    return open_bundle(path).manifest


def check_side(path: Path) -> None:
    """Check the hashes of a bundle, given by its folder or by its manifest. A no-op for a manifest that was stored alone.

    Raises:
        GateFailed: if a file is not what was exported.
    """
    if path.is_dir() or (path.name == MANIFEST and is_file(path.with_name(SUMS))):
        check_hashes(open_bundle(path))


def guards_alone(base: Path, candidate: Bundle, guards: Sequence[Guard]) -> Comparison:
    """The result of a comparison without times."""
    key = candidate.targets[0]
    return Comparison(
        base, candidate.path, host_key(key, candidate.precision(key), 0), GUARDS_ALONE, 0, None, (), tuple(guards)
    )


def refuse_unlike(base: Bundle, candidate: Bundle, key: str, *, across: bool = False) -> None:
    """Check that both bundles draw the same kind of picture with the same target; with `across` only the latter.

    Raises:
        Refused: if they do not.
    """
    for bundle in (base, candidate):
        if key not in bundle.targets:
            raise Refused(f"not comparable: {bundle.path} holds no target '{key}', only {several(bundle.targets)}")
    if not across or base.batch != candidate.batch:
        refuse_unlike_pictures(base.manifest, candidate.manifest)


def refuse_unlike_pictures(base: Mapping[str, Any], candidate: Mapping[str, Any]) -> None:
    """Check that two manifests are for the same kind of picture; otherwise their graphs would differ anyway.

    Raises:
        Refused: if picture size, width, pictures of a call or number of steps differ.
    """
    for what in ("resolution", "width"):
        if base.get(what) != candidate.get(what):
            difference = f"base has {what} {base.get(what)}, candidate {candidate.get(what)}"
            raise Refused(f"not comparable: {difference}; export both alike, or ask which is faster with --across")
    batch = [m.get("batch", 1) for m in (base, candidate)]
    if batch[0] != batch[1]:
        raise Refused(f"not comparable: a call of base draws {batch[0]} pictures, of candidate {batch[1]}; export both alike")
    steps = [len(m.get("schedule", {}).get("sigmas", ())) - 1 for m in (base, candidate)]
    if steps[0] != steps[1]:
        raise Refused(f"not comparable: base draws in {steps[0]} steps, candidate in {steps[1]}; --across compares them")


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
    across: bool = False,
) -> Comparison:
    """Time both bundles in turn, and judge.

    Args:
        base: The bundle to compare with.
        candidate: The bundle to judge.
        key: The target.
        thresholds: Metrics and their limits.
        guards: Results of the guards, for the record.
        progress: Shows the rounds.
        threads: CPU threads.
        order: `interleaved`, `abba` or `auto`.
        looks: Numbers of rounds after which the verdict is checked; the last is the maximum.
        cap: Seconds after which no further rounds are started.
        across: Whether the bundles may differ in width, picture size and steps.

    Raises:
        MeasurementFailed: if the target cannot be timed on this machine.
        Refused: if the two are not comparable.
        BadInput: if a threshold names a component that the bundle lacks.
    """
    refuse_unlike(base, candidate, key, across=across)
    runs_here(key)
    for threshold in thresholds:
        timed, parts = threshold.metric.rpartition("_")[0], candidate.artifacts(key)
        if timed not in (QUERY, LOAD) and timed not in parts:
            raise BadInput(f"{threshold.metric}: {candidate.path.name} has no {timed}, only {several(list(parts))}")
    directed = across and not thresholds  # asked is which side is faster, and by how much
    thresholds = thresholds or (ACROSS,)
    failing = not directed and any(not t.warn for t in thresholds)  # if so, metrics that only warn do not cause more rounds
    files = [b.path / f for b in (base, base, candidate) for a in b.artifacts(key).values() for f in a.files]
    mode = mode_for(key, order, sum(f.stat().st_size for f in files if f.is_file()), available_bytes())
    one_round: RoundOf = interleaved if mode == "interleaved" else abba
    start, notes = time.monotonic(), list[str]()
    host = host_key(key, candidate.precision(key), threads)
    short = mode == "interleaved" and all(t.metric.endswith("_p50") for t in thresholds)
    pairs = PAIRS_OF_MEDIANS if short else PAIRS
    with progress(f"{key}: the first round"):
        sides, first, seconds = _paced(Sides(base.path, candidate.path, key, threads, pairs), one_round, looks[0], cap)
    if looks[0] * seconds > cap:
        note = f"not measured: a round takes {seconds:.0f} s, at least {looks[0]} must fit into {cap:g} s"
        note += f"; allow --max-seconds {math.ceil(1.2 * looks[0] * seconds)}"
        return Comparison(base.path, candidate.path, host, mode, 0, None, (), tuple(guards), (note,), across=directed)
    done = [first]
    for look in looks:
        spent = time.monotonic() - start
        if look != looks[0] and spent + (look - len(done)) * spent / len(done) > cap:
            notes.append(f"stopped after {len(done)} rounds and {spent:.0f} s: {look} would take more than {cap:g} s")
            break
        with progress(f"{key}: base, candidate and base again, rounds {len(done) + 1} to {look}"):
            done += [one_round(sides, number) for number in range(len(done), look)]
        checks = self_check(done, thresholds, max(looks))
        judged = ((checks[t], _judge(t, done)) for t in thresholds)
        metrics = tuple(check.direction_of(m) if directed else check.applied_to(m) for check, m in judged)
        if "inconclusive" not in {m.verdict for m in metrics if not m.warn or not failing}:
            break
    check = worst_check(checks)
    if directed:
        notes += [difference_sentence(base, candidate), *(faster_sentence(m) for m in metrics)]
    elif not check.passed:
        notes.append("base against itself failed: only a regression larger than its bias is reported")
    return Comparison(
        base.path, candidate.path, host, mode, len(done), check, metrics, tuple(guards), tuple(notes), across=directed
    )


def _paced(sides: Sides, one_round: RoundOf, least: int, cap: float) -> tuple[Sides, DuelRound, float]:
    """Run the first round, and another with the fewest calls if `least` such rounds would not fit into `cap` seconds.

    Returns the sides with the number of calls to go on with, the last round and its seconds.
    """
    for pairs in (sides.pairs, FEWEST_PAIRS):
        sides, start = replace(sides, pairs=pairs), time.monotonic()
        first = one_round(sides, 0)
        seconds = time.monotonic() - start
        if least * seconds <= cap:
            break
    return sides, first, seconds


def difference_sentence(base: Bundle, candidate: Bundle) -> str:
    """What two bundles that differ on purpose are.

    Such as `base: width full, 128x128, 4 steps; candidate: width tiny, 128x128, 4 steps`.
    """
    sides = {"base": base, "candidate": candidate}
    return "; ".join(
        f"{name}: width {b.width}, {size_name(b.resolution)}, {len(b.schedule.sigmas) - 1} steps" for name, b in sides.items()
    )


def faster_sentence(m: Judged) -> str:
    """Which side is faster and how much, with the interval of the ratio.

    Such as `e2e_p50: the candidate is 2.31 times as fast as the base (2.28 to 2.34)`.
    """
    how, slowest, quickest = (1 / (1 + share) for share in (m.change, m.high, m.low))
    if m.verdict == "slower":
        how, slowest, quickest = 1 / how, 1 / quickest, 1 / slowest
    known = {
        "faster": "the candidate is {} times as fast as the base",
        "slower": "the base is {} times as fast as the candidate",
    }
    words = known.get(m.verdict, "no side is clearly faster: the candidate is {} times as fast as the base").format(
        f"{how:.3g}"
    )
    return f"{m.name}: {words} ({slowest:.3g} to {quickest:.3g})"


def _judge(threshold: Threshold, rounds: Sequence[DuelRound]) -> Judged:
    base = [r.base[threshold.metric] for r in rounds]
    return judge_metric(threshold, base, [b * math.exp(r.change[threshold.metric]) for b, r in zip(base, rounds, strict=True)])
