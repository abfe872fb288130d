"""One definition of a quantile: known values, the median, and what other libraries mean by it."""

from __future__ import annotations

import random
import statistics

import pytest

from snapgen_deploy.system.quantiles import bootstrap_interval, quantile


@pytest.mark.parametrize(("q", "expected"), [(0.0, 1.0), (0.25, 2.0), (0.5, 3.0), (0.9, 4.6), (0.975, 4.9), (1.0, 5.0)])
def test_known_values(q: float, expected: float) -> None:
    assert quantile([5.0, 1.0, 4.0, 2.0, 3.0], q) == pytest.approx(expected)


def test_it_is_what_the_standard_library_calls_inclusive() -> None:
    draw = random.Random(1)
    for n in (2, 3, 10, 64, 1001):
        values = [draw.lognormvariate(3, 0.2) for _ in range(n)]
        deciles = statistics.quantiles(values, n=10, method="inclusive")
        assert [quantile(values, q / 10) for q in range(1, 10)] == pytest.approx(deciles)
        assert quantile(values, 0.5) == pytest.approx(statistics.median(values))


def test_an_interval_holds_the_middle_95_percent() -> None:
    low, high = bootstrap_interval(list(range(1001)))
    assert (low, high) == (25.0, 975.0)
