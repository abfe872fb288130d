"""Base against itself: what this machine can tell apart just now, and what its answer about a candidate is worth."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from snapgen_deploy.latency.compare.duel import DuelRound, RoundOf, Sides
from snapgen_deploy.latency.compare.verdict import CONFIDENCE, Judged, Threshold
from snapgen_deploy.latency.stats import detectable, t_interval

COUNTS = (5, 15, 30)  # rounds; the next where one fails: an interrupted round weighs less among more
FEWEST_PAIRS = 3  # calls of each side in a round, where a picture takes long


@dataclass(frozen=True)
class SelfCheck:
    """One metric of base against itself, in the same way as the candidate. Changes are relative."""

    metric: str
    rounds: int
    low: float
    high: float
    detectable: float  # with the most rounds that will be run
    passed: bool
    biased: bool = False  # one of two equal sides is preferred, which no number of rounds would fix
    reason: str = ""

    def sober(self, judged: Judged) -> Judged:
        """What is left of a verdict on this metric: after a failed check only a regression larger than the doubt."""
        if self.passed:
            return judged
        bias = max(abs(math.log1p(self.low)), abs(math.log1p(self.high))) if self.biased else 0.0
        sure = math.log1p(judged.low) > bias and math.log1p(judged.change) - bias > math.log1p(judged.limit)
        return replace(judged, verdict="regressed" if judged.verdict == "regressed" and sure else "inconclusive")


@dataclass(frozen=True)
class Pace:
    """The sides with as many calls a round as the time allows, the rounds that told, and what a round takes."""

    sides: Sides
    rounds: tuple[DuelRound, ...]
    seconds: float


def paced(sides: Sides, one_round: RoundOf, least: int, cap: float) -> Pace:
    """Rounds until `least` of them fit into `cap` seconds: with the usual number of calls, or with the fewest."""
    rounds: list[DuelRound] = []
    for pairs in (sides.pairs, FEWEST_PAIRS):
        sides, start = replace(sides, pairs=pairs), time.monotonic()
        rounds.append(one_round(sides, -1 - len(rounds)))
        seconds = time.monotonic() - start
        if least * seconds <= cap:
            break
    return Pace(sides, tuple(rounds), seconds)


def self_check(
    pace: Pace, thresholds: Sequence[Threshold], one_round: RoundOf, looks: Sequence[int], until: float
) -> Mapping[Threshold, SelfCheck]:
    """How base differs from itself in what each threshold is about, from the pace's rounds and more.

    It fails where the machine prefers one of two equal sides by more than half the limit, or where even the most rounds
    could not resolve the limit. Where one fails that may fail the comparison, all are looked at again with more rounds, since
    one in twenty comes by chance, as long as the time `until` (`time.monotonic`) has not come.
    """
    rounds = list(pace.rounds)
    weighed = _weighed(thresholds)
    for count in COUNTS:
        rounds += [one_round(pace.sides, -1 - number) for number in range(len(rounds), count)]
        found = {t: _checked(rounds, t, max(looks)) for t in thresholds}
        if all(found[t].passed for t in weighed) or time.monotonic() > until:
            break
    return found


def gravest(checks: Mapping[Threshold, SelfCheck]) -> SelfCheck:
    """The check to tell: of what may fail one that did not pass, else that of the least that can be told."""
    return max((checks[t] for t in _weighed(checks)), key=lambda c: (not c.passed, c.detectable))


def _weighed(thresholds: Iterable[Threshold]) -> list[Threshold]:
    """Those that may fail, where there are such."""
    every = list(thresholds)
    return [t for t in every if not t.warn] or every


def _checked(rounds: Sequence[DuelRound], threshold: Threshold, most: int) -> SelfCheck:
    name, bound = threshold.metric, math.log1p(threshold.limit)
    ratios = [math.log(r.candidate[name] / r.base[name]) for r in rounds]
    interval, reach = t_interval(ratios), detectable(statistics.stdev(ratios), most, CONFIDENCE)
    best = math.expm1(reach)
    biased = not interval.low <= 0 <= interval.high and not abs(interval.estimate) <= bound / 2
    reason = ""
    if biased:
        reason = f"{name}: base differs from itself by {100 * math.expm1(interval.estimate):+.1f} %"
    elif not reach <= bound:
        reason = f"{name}: this machine resolves {100 * best:.1f} % at best just now, not {100 * threshold.limit:g} %"
    low, high = math.expm1(interval.low), math.expm1(interval.high)
    return SelfCheck(name, len(ratios), low, high, best, not reason, biased, reason)
