"""The statistics of latency, with their sources. Times may have any unit; intervals are two-sided unless noted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats as distributions

from snapgen_deploy.system.quantiles import quantile

# LoadGen's minimum numbers of queries (the t = 1 row of its early-stopping table), at 99 % confidence.
QUERIES_NEEDED = {0.5: 11, 0.9: 64, 0.95: 130, 0.99: 662}


def early_stopping(samples: Sequence[float], percentile: float) -> float | None:
    """MLPerf's early-stopping estimate: an upper bound of a percentile, at 99 % confidence.

    For the largest t for which t of n queries may exceed the percentile, the t - 1 highest samples are discarded, and the
    highest of the rest is the bound. None below `QUERIES_NEEDED`. Source: MLCommons inference rules, appendix "Early Stopping
    Criterion", tolerance 0.

    >>> early_stopping(range(100), 0.9), early_stopping(range(50), 0.9)
    (97, None)
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
    """Mean with Student's t interval; needs at least two values."""
    mean, half = statistics.fmean(values), half_width(values, confidence)
    return Interval(mean, mean - half, mean + half)


def half_width(values: Sequence[float], confidence: float = 0.95) -> float:
    """Half of Student's t interval of the mean."""
    n = len(values)
    return float(distributions.t.ppf((1 + confidence) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)


def detectable(spread: float, n: int, confidence: float = 0.95, power: float = 0.8) -> float:
    """Minimum detectable effect of n values with standard deviation `spread`: the shift that is found with probability `power`.

    (t(confidence) + t(power)) * spread / sqrt(n), Student's t with n - 1 degrees of freedom.
    """
    both = distributions.t.ppf((1 + confidence) / 2, n - 1) + distributions.t.ppf(power, n - 1)
    return float(both) * spread / math.sqrt(n)


def prediction_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean difference of one new value from at least two others, with Student's interval for one value.

    `values` are the differences. For n values from the normal distribution of the new one, the half width is
    t * s * sqrt(1 + 1 / n).
    """
    mean, half = statistics.fmean(values), half_width(values, confidence) * math.sqrt(len(values) + 1)
    return Interval(mean, mean - half, mean + half)


def outliers(samples: Sequence[float]) -> int:
    """Number of samples outside of Tukey's fences (1.5 interquartile ranges). They are reported, never dropped.

    >>> outliers([10, 11, 10, 12, 11, 30])
    1
    """
    if len(samples) < 4:
        return 0
    first, third = quantile(samples, 0.25), quantile(samples, 0.75)
    reach = 1.5 * (third - first)
    return sum(not first - reach <= s <= third + reach for s in samples)
