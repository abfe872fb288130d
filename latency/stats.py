"""The statistics of latency, with their sources. Times in any one unit; intervals are two-sided unless said otherwise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats as distributions

from snapgen_deploy.system.quantiles import quantile

# LoadGen's smallest numbers of queries (the t = 1 row of its early-stopping table), at 99 % confidence.
QUERIES_NEEDED = {0.5: 11, 0.9: 64, 0.95: 130, 0.99: 662}


def early_stopping(samples: Sequence[float], percentile: float) -> float | None:
    """MLPerf's early-stopping estimate of a percentile: of n queries the t highest may be over it, for the largest t that
    still proves the percentile at 99 %; the t - 1 highest are discarded and the highest of the rest is reported.

    None below `QUERIES_NEEDED`. Source: MLCommons inference rules, appendix "Early Stopping Criterion", tolerance 0.
    """
    n = len(samples)
    if n < QUERIES_NEEDED[percentile]:
        return None
    # t over-latency queries among n are allowed when P(Binomial(n, 1 - percentile) <= t) <= 1 - confidence
    t = 0
    while distributions.binom.cdf(t + 1, n, 1 - percentile) <= 0.01:
        t += 1
    return sorted(samples, reverse=True)[max(t - 1, 0)]


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval around it."""

    estimate: float
    low: float
    high: float


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean with Student's t interval; at least two values."""
    mean, half = statistics.fmean(values), half_width(values, confidence)
    return Interval(mean, mean - half, mean + half)


def half_width(values: Sequence[float], confidence: float = 0.95) -> float:
    """Half of Student's t interval of the mean."""
    n = len(values)
    return float(distributions.t.ppf((1 + confidence) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)


def detectable(spread: float, n: int, confidence: float = 0.95, power: float = 0.8) -> float:
    """Minimum detectable effect of n values of standard deviation `spread`: (t(confidence) + t(power)) * spread / sqrt(n),
    the shift that is found with probability `power`."""
    both = distributions.t.ppf((1 + confidence) / 2, n - 1) + distributions.t.ppf(power, n - 1)
    return float(both) * spread / math.sqrt(n)


def prediction_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of how far one new value lies from each of at least two others, with Student's interval for that one value.

    For n independent values of the same normal distribution as the new one: half of it is t * s * sqrt(1 + 1 / n).
    """
    mean, half = statistics.fmean(values), half_width(values, confidence) * math.sqrt(len(values) + 1)
    return Interval(mean, mean - half, mean + half)


def outliers(samples: Sequence[float]) -> int:
    """How many lie outside Tukey's fences (1.5 interquartile ranges); they are reported, never dropped."""
    if len(samples) < 4:
        return 0
    first, third = quantile(samples, 0.25), quantile(samples, 0.75)
    reach = 1.5 * (third - first)
    return sum(not first - reach <= s <= third + reach for s in samples)
