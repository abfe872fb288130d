import math
import random
import statistics

import pytest
from scipy.stats import binom

from snapgen_deploy.latency.stats import QUERIES_NEEDED, detectable, early_stopping, outliers, prediction_interval, t_interval


@pytest.mark.parametrize(("percentile", "needed"), QUERIES_NEEDED.items())
def test_the_smallest_numbers_of_queries_are_those_of_loadgen(percentile, needed):
    assert early_stopping(list(range(needed - 1)), percentile) is None
    assert early_stopping(list(range(needed)), percentile) == needed - 1  # one over-latency query is allowed, none discarded


def test_more_queries_discard_more():
    assert early_stopping(list(range(81)), 0.9) == 79  # t = 2 from 81 queries on, as in LoadGen's table
    assert early_stopping(list(range(97)), 0.9) == 94  # t = 3 from 97


def test_the_bound_holds_as_often_as_it_says():
    draw = random.Random(5)
    true_p90 = -math.log(0.1)  # of the exponential distribution
    held = sum(early_stopping([draw.expovariate(1) for _ in range(200)], 0.9) >= true_p90 for _ in range(400))
    assert held >= binom.ppf(0.001, 400, 0.99)


def test_student_s_interval_of_known_values():
    found = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.estimate == 3.0
    assert found.high - 3.0 == pytest.approx(2.7764 * statistics.stdev([1, 2, 3, 4, 5]) / 5**0.5, rel=1e-4)
    assert found.low == pytest.approx(6.0 - found.high)


def test_the_detectable_effect_of_ten_rounds_is_about_one_standard_deviation():
    assert detectable(1.0, 10) == pytest.approx(0.99, abs=0.01)
    assert detectable(2.0, 10) == pytest.approx(2 * detectable(1.0, 10))


def test_one_more_value_lies_in_its_interval_as_often_as_it_says():
    draw, inside = random.Random(0), 0
    for _ in range(2000):
        *values, new = [draw.gauss(7.0, 2.0) for _ in range(5)]
        found = prediction_interval([new - v for v in values], 0.9)
        inside += found.low <= 0 <= found.high
    assert 0.88 < inside / 2000 < 0.92


def test_outliers_are_counted_not_dropped():
    assert outliers([1.0, 1.1, 0.9, 1.0, 1.05, 9.0]) == 1
    assert outliers([1.0, 2.0]) == 0
