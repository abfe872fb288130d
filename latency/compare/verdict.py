"""The decision rule: is a candidate slower? One log-ratio per round, Student's interval, four answers.

    d[r] = ln(median[r](candidate)) - ln(median[r](base)),   interval = mean(d) ± t * sd(d) / sqrt(R)

    regressed     low > 0   and  mean >  ln(1 + limit)
    improved      high < 0  and  mean < -ln(1 + limit)
    ok            high < ln(1 + limit): the limit itself is excluded
    inconclusive  otherwise; more rounds may decide

The verdict is checked after several numbers of rounds, so each check gets its share of the 5 % error (Bonferroni). By
construction, a slowdown of exactly `limit` is found about half the time: set the limit to about 60 % of what must be caught.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.names import DECODER, STUDENT, TEXT_ENCODER
from snapgen_deploy.latency.results import QUERY
from snapgen_deploy.latency.stats import Interval, detectable, t_interval

LOOKS = (10, 20, 30)  # numbers of rounds after which the verdict is checked
CONFIDENCE = 1 - 0.05 / len(LOOKS)
LOAD = "load"
TIMINGS = (QUERY, TEXT_ENCODER, STUDENT, DECODER, LOAD)
METRICS = tuple(f"{name}_{statistic}" for name in TIMINGS for statistic in ("p50", "p90"))
OTHERS = re.compile(rf"{TEXT_ENCODER}_\d_p[59]0")  # metrics of further text encoders
_VERDICTS = ("regressed", "inconclusive", "improved", "ok")  # the worst first


@dataclass(frozen=True)
class Threshold:
    """How much slower a metric may get, and whether more than that fails or only warns."""

    metric: str
    limit: float  # 0.05 is 5 %
    warn: bool = False


@dataclass(frozen=True)
class Judged:
    """The verdict on one metric of a comparison; changes are relative, 0.05 is 5 % slower."""

    name: str
    base_ms: float
    candidate_ms: float
    change: float
    low: float
    high: float
    detectable: float  # with 80 % power
    limit: float | None  # None: any change is allowed
    warn: bool
    verdict: str
    rounds: tuple[float, ...]  # log ratios

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "rounds": list(self.rounds)}


def parse_threshold(text: str, *, warn: bool = False) -> Threshold:
    """Parse a threshold.

    >>> parse_threshold("e2e_p50:5%")
    Threshold(metric='e2e_p50', limit=0.05, warn=False)

    Raises:
        BadInput: if the text is not METRIC:PERCENT%, or the metric is not known.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:\.\d+)?)%", text.strip())
    if found is None or not (found[1] in METRICS or OTHERS.fullmatch(found[1])) or not float(found[2]) > 0:
        raise BadInput(f"threshold: got '{text}', expected METRIC:PERCENT% such as e2e_p50:5%; metrics: {', '.join(METRICS)}")
    return Threshold(found[1], float(found[2]) / 100, warn)


def judge_metric(
    threshold: Threshold, base: Sequence[float], candidate: Sequence[float], confidence: float = CONFIDENCE
) -> Judged:
    """Judge one metric by its values (ms) in every round, paired; needs at least two rounds.

    >>> slower = judge_metric(Threshold("e2e_p50", 0.05), [100, 101, 99, 100], [120, 122, 119, 120])
    >>> slower.verdict, round(slower.change, 2)
    ('regressed', 0.2)
    """
    ratios = [math.log(c / b) for b, c in zip(base, candidate, strict=True)]
    base_ms, candidate_ms = (math.exp(sum(map(math.log, side)) / len(side)) for side in (base, candidate))
    reach = detectable(statistics.stdev(ratios), len(ratios), confidence)
    return judged(threshold, base_ms, candidate_ms, ratios, t_interval(ratios, confidence), reach)


def judged(
    threshold: Threshold, base_ms: float, candidate_ms: float, ratios: Sequence[float], interval: Interval, reach: float
) -> Judged:
    """Judge one metric by its log ratios, their interval, and the smallest detectable log ratio (`reach`)."""
    return Judged(
        name=threshold.metric,
        base_ms=base_ms,
        candidate_ms=candidate_ms,
        change=math.expm1(interval.estimate),
        low=math.expm1(interval.low),
        high=math.expm1(interval.high),
        detectable=math.expm1(reach),
        limit=threshold.limit,
        warn=threshold.warn,
        verdict=decide(interval.estimate, interval.low, interval.high, math.log1p(threshold.limit)),
        rounds=tuple(ratios),
    )


def decide(mean: float, low: float, high: float, bound: float) -> str:
    """The verdict for a mean log ratio with its interval; NaN is inconclusive."""
    if low > 0 and mean > bound:
        return "regressed"
    if high < 0 and mean < -bound:
        return "improved"
    return "ok" if high < bound else "inconclusive"


def worst(verdicts: Sequence[str]) -> str:
    """The worst of several verdicts; ok if there are none."""
    return min(verdicts, key=_VERDICTS.index, default="ok")
