"""The A/A self-check: base against itself in the same rounds, to learn which changes this machine can detect at the moment."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from snapgen_deploy.latency.compare.duel import DuelRound
from snapgen_deploy.latency.compare.verdict import CONFIDENCE, Judged, Threshold
from snapgen_deploy.latency.stats import detectable, t_interval


@dataclass(frozen=True)
class SelfCheck:
    """One metric of base against itself, measured like the candidate. Changes are relative."""

    metric: str
    rounds: int
    low: float
    high: float
    detectable: float  # with the most rounds that will be run
    passed: bool
    biased: bool = False  # one of two equal sides is faster, which more rounds would not fix
    reason: str = ""

    def applied_to(self, judged: Judged) -> Judged:
        """The verdict on this metric after the check: if it failed, only a regression larger than the bias remains."""
        if self.passed or judged.limit is None:
            return judged
        bias = max(abs(math.log1p(self.low)), abs(math.log1p(self.high))) if self.biased else 0.0
        sure = math.log1p(judged.low) > bias and math.log1p(judged.change) - bias > math.log1p(judged.limit)
        return replace(judged, verdict="regressed" if judged.verdict == "regressed" and sure else "inconclusive")

    def direction_of(self, judged: Judged) -> Judged:
        """Which side is faster, without a limit to keep: `slower` or `faster` beyond the bias of this machine.

        `alike`: the whole interval is within the former limit; else `inconclusive`.
        """
        if judged.limit is None:
            return judged
        bias = max(abs(math.log1p(self.low)), abs(math.log1p(self.high))) if self.biased else 0.0
        low, high, bound = math.log1p(judged.low), math.log1p(judged.high), math.log1p(judged.limit)
        if low > bias:
            verdict = "slower"
        elif high < -bias:
            verdict = "faster"
        else:
            verdict = "alike" if -bound < low and high < bound else "inconclusive"
        return replace(judged, verdict=verdict, limit=None, warn=True)


def self_check(rounds: Sequence[DuelRound], thresholds: Sequence[Threshold], most: int) -> Mapping[Threshold, SelfCheck]:
    """How base differs from itself in the metric of each threshold, if `most` rounds are run at most.

    A check fails if one of two equal sides is faster by more than half the limit, or if even `most` rounds could not resolve
    the limit. One in twenty fails by chance; more rounds may pass it.
    """
    return {t: _checked(rounds, t, most) for t in thresholds}


def worst_check(checks: Mapping[Threshold, SelfCheck]) -> SelfCheck:
    """The check to report, among metrics that can fail: a failed one, else the one with the coarsest resolution."""
    return max((checks[t] for t in _weighed(checks)), key=lambda c: (not c.passed, c.detectable))


def _weighed(thresholds: Iterable[Threshold]) -> list[Threshold]:
    """The thresholds that can fail the comparison; all, if none can."""
    every = list(thresholds)
    return [t for t in every if not t.warn] or every


def _checked(rounds: Sequence[DuelRound], threshold: Threshold, most: int) -> SelfCheck:
    name, bound = threshold.metric, math.log1p(threshold.limit)
    ratios = [r.bias[name] for r in rounds]
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
