import math
import random

import pytest

from snapgen_deploy.errors import BadInput
from snapgen_deploy.latency.compare.verdict import LOOKS, decide, judge_metric, parse_threshold, worst

NAN = math.nan


@pytest.mark.parametrize(
    ("mean", "low", "high", "verdict"),
    [
        (0.06, 0.05, 0.07, "regressed"),
        (0.04, 0.03, 0.05, "inconclusive"),  # surely slower, but not surely within the limit
        (0.01, -0.01, 0.02, "ok"),
        (0.06, -0.01, 0.13, "inconclusive"),
        (-0.06, -0.07, -0.05, "improved"),
        (-0.01, -0.02, -0.001, "ok"),
        (NAN, NAN, NAN, "inconclusive"),
    ],
)
def test_the_rule(mean, low, high, verdict):
    assert decide(mean, low, high, math.log1p(0.045)) == verdict


def rounds(draw, count, slower, noise=0.012):
    """Base and candidate share the machine's mood, which wanders by half; their ratio does not."""
    mood = [50 * math.exp(draw.gauss(0, 0.2)) for _ in range(count)]
    return mood, [m * slower * math.exp(draw.gauss(0, noise)) for m in mood]


@pytest.mark.parametrize(("slower", "expected"), [(1.0, "ok"), (1.05, "regressed"), (0.9, "improved")])
def test_simulated_comparisons_are_right_nearly_always(slower, expected):
    draw = random.Random(11)
    found = [looked_at(draw, slower) for _ in range(100)]
    assert found.count(expected) >= 97
    assert slower != 1.0 or "regressed" not in found


def looked_at(draw, slower):
    """The verdict of the first look that has one."""
    base, candidate = rounds(draw, LOOKS[-1], slower)
    verdicts = (judge_metric(parse_threshold("e2e_p50:3%"), base[:look], candidate[:look]).verdict for look in LOOKS)
    return next((v for v in verdicts if v != "inconclusive"), "inconclusive")


def test_a_judgement_tells_ratios_and_geometric_means():
    found = judge_metric(parse_threshold("decoder_p90:10%", warn=True), [10.0, 40.0], [11.0, 44.0])
    assert found.change == pytest.approx(0.1)
    assert found.base_ms == pytest.approx(20.0)
    assert found.warn
    assert found.rounds == pytest.approx((math.log(1.1),) * 2)


@pytest.mark.parametrize("text", ["e2e_p50", "e2e_p50:5", "e2e_p51:5%", "e2e_p50:0%", "e2e_p50:-5%", "e2e_p50:nan%", ""])
def test_bad_thresholds(text):
    with pytest.raises(BadInput, match=r"expected METRIC:PERCENT%"):
        parse_threshold(text)


def test_the_worst_of_several():
    assert worst(["ok", "improved"]) == "improved"
    assert worst(["ok", "inconclusive", "regressed"]) == "regressed"
    assert worst([]) == "ok"
