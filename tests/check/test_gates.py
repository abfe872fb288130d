import json
import math

import numpy as np
import pytest

from snapgen_deploy.check.fidelity import Measured, fidelity_gates
from snapgen_deploy.check.gates import (
    MEDIAN_PSNR,
    PSNR,
    PSNR_CAP,
    _headroom_gate,
    _keep_least,
    at_least,
    at_most,
    failed,
    limit_text,
    picture_gates,
    placement_gates,
    psnr,
    relative_error,
)
from snapgen_deploy.export.base import Description, Headroom
from snapgen_deploy.export.precisions import PRECISIONS


def test_not_a_number_fails_both_ways():
    assert at_most("t", "c", "n", math.nan, 1.0).verdict == "failed"
    assert at_least("t", "c", "n", math.nan, 1.0).verdict == "failed"
    assert json.dumps(at_most("t", "c", "n", math.nan, 1.0).as_dict(), allow_nan=False)


@pytest.mark.parametrize(("value", "verdict"), [(0.9, "passed"), (1.0, "passed"), (1.1, "failed")])
def test_limits_are_inclusive(value, verdict):
    assert at_most("t", "c", "n", value, 1.0).verdict == verdict
    assert at_least("t", "c", "n", -value, -1.0).verdict == verdict


@pytest.mark.parametrize(
    ("name", "limit", "text"),
    [
        ("golden_median_psnr", 40.0, "≥ 40 dB"),
        ("psnr", 40.0, "≥ 40 dB"), ("fidelity_mean_psnr", 30.0, "≥ 30 dB"), ("fidelity_ssim", 0.9, "≥ 0.9"),
        ("fidelity_score_change", -3.0, "≥ -3"), ("relative_error", 0.02, "≤ 0.02"), ("fidelity_latent_error", 0.1, "≤ 0.1"),
        ("delegates", 1.0, "≤ 1"),
    ],
)  # fmt: skip
def test_a_limit_says_which_side_of_it_is_good(name, limit, text):
    assert limit_text(name, limit) == text


def test_every_fidelity_gate_is_held_to_the_side_that_its_limit_says():
    measured = Measured(100, 20.0, 40.0, 0.95, (0.01, 0.02), None)
    for gate in fidelity_gates("onnx:cpu", measured, PRECISIONS["fp16"].limits):
        if gate.value is not None:
            least = limit_text(gate.name, gate.limit).startswith("≥")
            assert (gate.verdict == "passed") == (gate.value >= gate.limit if least else gate.value <= gate.limit)


def test_relative_error():
    rng = np.random.default_rng()
    x = rng.standard_normal((2, 3, 5)).astype(np.float32)
    assert relative_error(x, x) == 0
    assert relative_error(1.01 * x, x) == pytest.approx(0.01, rel=1e-3)
    assert math.isnan(relative_error(x * np.nan, x))
    assert math.isnan(relative_error(x[:1], x))
    assert math.isnan(relative_error(x * np.inf, x)) or relative_error(x * np.inf, x) == math.inf


def test_psnr():
    rng = np.random.default_rng()
    x = rng.uniform(-0.9, 0.9, (1, 3, 8, 8))
    assert psnr(x, x) == PSNR_CAP
    assert psnr(x + 0.02, x) == pytest.approx(10 * math.log10(4 / 0.0004), abs=0.01)
    assert psnr(np.full_like(x, 5.0), np.ones_like(x)) == PSNR_CAP  # both clamp to white
    white = np.ones_like(x)
    for number in (math.nan, math.inf, -math.inf):  # an infinity is not white
        broken = white.copy()
        broken.flat[0] = number
        assert not psnr(broken, white) >= 0


@pytest.mark.parametrize(
    ("decibels", "least", "median"),
    [
        ([48.7, 39.0, 75.3, 60.0], "passed", "passed"),  # one lies between two outcomes
        ([48.7, 12.0, 75.3, 60.0], "failed", "passed"),  # one is wrong
        ([39.0, 39.9, 75.3, 60.0], "passed", "failed"),  # half of them
        ([39.0, 75.3], "passed", "failed"),  # of two the lesser counts
        ([39.0], "passed", "failed"),
        ([40.0, 20.0, 41.0], "passed", "passed"),
        ([48.7, math.nan, 75.3, 60.0], "failed", "failed"),
        ([48.7, -math.inf, 75.3, 60.0], "failed", "passed"),
    ],
)
def test_one_picture_between_two_outcomes_is_forgiven_and_a_wrong_one_is_not(decibels, least, median):
    limits = PRECISIONS["fp16"].limits
    gates = picture_gates("t", (PSNR, MEDIAN_PSNR), np.array(decibels), (limits.psnr, limits.median_psnr))
    assert [(g.name, g.verdict) for g in gates] == [("psnr", least), ("median_psnr", median)]
    assert gates[0].detail == f"dB, least of {len(decibels)} pictures"


def test_a_picture_s_worst_row_counts_and_one_that_did_not_come_fails():
    rng = np.random.default_rng()
    meant = rng.uniform(-0.9, 0.9, (3, 3, 8, 8))
    drawn = meant + 0.02
    found = np.full(3, math.nan)
    _keep_least(found, [0, 1], drawn[:2], meant[:2])
    broken = meant[0] * np.nan
    _keep_least(found, [2, 0], np.stack([drawn[2], broken]), meant[[2, 0]])  # filled up with the first
    near = pytest.approx(10 * math.log10(4 / 0.0004), abs=0.01)
    assert list(found) == [-math.inf, near, near]
    short = np.full(3, math.nan)
    _keep_least(short, [0, 1, 2], drawn[:2], meant)
    assert list(short[:2]) == [near, near]
    assert {g.verdict for g in picture_gates("t", (PSNR, MEDIAN_PSNR), short, (8.0, 8.0))} == {"failed"}


def test_operators_outside_the_delegate_fail_for_student_and_decoder():
    clean = Description(1, {}, placement={"XnnpackBackend": 1})
    leaky = Description(1, {}, placement={"XnnpackBackend": 2}, portable_ops={"aten::expand_copy": 3})
    gates = placement_gates(
        "executorch:xnnpack", {"student": clean, "decoder": leaky, "text_encoder": leaky}, beside=["text_encoder"]
    )
    assert [(g.component, g.verdict, g.value) for g in gates] == [("student", "passed", 0), ("decoder", "failed", 3)]
    assert failed(gates)[0].detail == "aten::expand_copy"


def test_where_an_npu_s_nodes_run_is_known_where_the_context_was_opened():
    described = {"student": Description(1, {}, placement={"HTP": 5})}
    assert [g.verdict for g in placement_gates("onnx:qnn", described)] == ["passed"]
    (gate,) = placement_gates("onnx:qnn", described, "pip install it")
    assert (gate.verdict, gate.value, gate.detail) == ("not_run", None, "pip install it")


def test_values_inside_that_a_runtime_does_not_show_are_not_run_but_listed():
    def runner(arrays):
        return arrays

    assert _headroom_gate("onnx:cpu", "student", runner) is None
    runner.unrecorded = "nothing is shown"
    gate = _headroom_gate("coreml", "student", runner)
    assert (gate.name, gate.verdict, gate.detail) == ("largest_value", "not_run", "nothing is shown")
    del runner.unrecorded
    runner.headroom = lambda: Headroom(1e5, 65504.0, ("add",))
    assert _headroom_gate("coreml", "student", runner).verdict == "failed"
