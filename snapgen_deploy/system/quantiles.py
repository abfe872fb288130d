"""Quantiles, defined once: p50, p90, quartiles and the ends of bootstrap intervals are all taken in this way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def quantile(values: Sequence[float] | np.ndarray, q: float) -> float:
    """The value below which a share `q` of a sample lies, linear between the two samples nearest to (n - 1) q.

    Definition 7 of Hyndman and Fan, Sample Quantiles in Statistical Packages, The American Statistician 50 (1996): the
    default of NumPy and R, `method="inclusive"` of `statistics.quantiles`. At 0.5 it is the median.
    """
    return float(np.quantile(values, q))


def bootstrap_interval(resampled: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of an estimate, from its values on resampled data.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    return quantile(resampled, 0.025), quantile(resampled, 0.975)
