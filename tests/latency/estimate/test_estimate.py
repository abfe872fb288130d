"""Where an estimate comes from: measured before calibrated, fitted to published times, derived, or refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.errors import BadInput
from snapgen_deploy.latency.environment import host_key
from snapgen_deploy.latency.estimate.calibrate import HostCalibration, key_of, store
from snapgen_deploy.latency.estimate.cost import OpCost
from snapgen_deploy.latency.estimate.cost_ops import OP_KINDS
from snapgen_deploy.latency.estimate.estimate import Estimate, Host, NoBasis, estimate_picture, plan_estimator
from snapgen_deploy.latency.estimate.estimate_basis import CPU_SLOWER, basis_of
from snapgen_deploy.latency.estimate.estimate_fitted import PEAK_BANDWIDTH, PEAK_MACS, fitted
from snapgen_deploy.latency.estimate.estimate_measured import find_measured, measured_dir, save_measured
from snapgen_deploy.latency.estimate.machine import Machine, Rate, component_times
from snapgen_deploy.latency.estimate.published import ON_CHIP, PICTURE_TIMES, POINTS, load_of, trace_point
from snapgen_deploy.latency.estimate.sweep import plot_sweep, sweep_estimates
from snapgen_deploy.models.presets import shapes, shapes_unet, snapgenpp
from tests.latency.estimate.conftest import quiet
from tests.latency.test_results import measurement

SIZE = (128, 128)
CPU = Machine({k: Rate(op=1e-6, mac=1e-10, read=1e-10, written=1e-10) for k in OP_KINDS}, call=1e-5, on_chip=2e6, spill=1e-10)


def test_the_fit_keeps_the_published_order_and_stays_within_published_peaks():
    fit = fitted()
    by_time = sorted(fit.points, key=lambda p: p.published_ms)
    assert [p.fitted_ms for p in by_time] == sorted(p.fitted_ms for p in fit.points)
    assert fit.accelerator.macs <= PEAK_MACS * 1.0001
    assert fit.accelerator.spill <= PEAK_BANDWIDTH * 1.0001
    near = [p for p in fit.points if p.apart is None]
    assert all(p.published_ms / fit.factor < p.predicted_ms < p.published_ms * fit.factor for p in near)
    assert fit.factor < 1.4


# Limits of the error of a point that is predicted from the others alone. Without the last two, the largest was 18 % for C.
@pytest.mark.parametrize(
    ("name", "limit"),
    [("A", 0.19), ("C", 0.19), ("small", 0.19), ("tiny", 0.19), ("decoder", 0.19), ("full", 0.31), ("snapgen", 0.57)],
)
def test_a_published_time_is_predicted_from_the_others(name, limit):
    assert {p.name for p in fitted().points} == {p.name for p in POINTS}
    assert abs(next(p.error for p in fitted().points if p.name == name)) < limit


@pytest.mark.parametrize("page", ["docs/latency.md", "benchmarks/results/estimate.md"])
def test_pages_show_every_published_time_with_its_error(page):
    text = (Path(__file__).parents[3] / page).read_text(encoding="utf-8")
    rows = [[cell.strip(" %") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.count("|") == 6]
    shown = {row[0]: row[1:] for row in rows}
    for point in fitted().points:
        (cells,) = (row for name, row in shown.items() if name.replace(",", ":").partition(":")[0] == point.name)
        found = [float(cell.replace("\N{MINUS SIGN}", "-")) for cell in cells]
        assert found[:3] == pytest.approx([point.published_ms, point.fitted_ms, point.predicted_ms], rel=0.01)
        assert found[3] == pytest.approx(100 * point.error, abs=1)


def test_no_rates_can_meet_all_published_times():
    """If they can one day, the estimator's words about it are wrong."""
    known = {p.name: p for p in POINTS}
    less, more = known["snapgen"], known["tiny"]
    with_fitted_rates = ("macs", "moved", "spilled")
    assert all(vars(less.load)[name] < 0.75 * vars(more.load)[name] for name in with_fitted_rates)
    assert less.ms > 0.95 * more.ms


@pytest.mark.parametrize("name", PICTURE_TIMES)
def test_a_published_picture_and_its_step_are_within_the_interval(name):
    fit = fitted()
    known = {p.name: p for p in fit.points}
    step, rest = known[name], known["decoder"].fitted_ms + fit.picture_ms
    slower = 1.0 if step.apart is None else step.published_ms / step.predicted_ms
    assert step.fitted_ms / fit.factor < step.published_ms < step.fitted_ms * slower * fit.factor
    least, most = (4 * step.fitted_ms + rest) / fit.factor, (4 * step.fitted_ms * slower + rest) * fit.factor
    assert least < PICTURE_TIMES[name] < most


def test_only_points_set_apart_are_unlike_those_that_are_fitted():
    for point in POINTS:
        found = fitted().like(point.load)
        assert (found and found.name) == (None if point.apart is None else point.name)
    small = next(p.load for p in POINTS if p.name == "small")
    assert fitted().like(replace(small, maps=0.1 * small.moved)).name == "snapgen"
    assert fitted().like(replace(small, maps=0.1 * small.moved, attended=0.0)) is None  # the decoder has more
    assert fitted().like(replace(small, again=0.1 * small.moved)).name == "full"


def test_only_a_network_that_is_like_a_point_set_apart_has_its_doubt():
    phone, target = load_profile("iphone16pm"), "coreml"
    near, far = (estimate_picture(config, "full", SIZE, phone, target) for config in (shapes(), shapes_unet()))
    assert near.high / near.ms == pytest.approx(fitted().factor)
    assert [near.ms / near.low, far.ms / far.low] == pytest.approx(2 * [fitted().factor])
    step = next(p for p in fitted().points if p.name == "snapgen")
    wider = far.ms + (step.published_ms / step.predicted_ms - 1) * far.steps * far.parts["student_step"]
    assert far.high == pytest.approx(fitted().factor * wider)
    assert "like SnapGen's U-Net, which this fit underestimates by 56 %" in far.lines[-1]
    assert not any("like" in line and "underestimates" in line for line in near.lines)
    other = estimate_picture(shapes_unet(), "full", SIZE, load_profile("ipadpro-m4"), target)
    assert other.lines[-1] == far.lines[-1]


def test_the_time_of_a_load_is_that_of_its_operations():
    ops = (
        OpCost("mm", "linear", 10**12, 60_000_000, 10**9, weights=20_000_000),
        OpCost("bmm", "product", 10**9, 10**6, 10**9, scores=10**9, tile=30_000_000),
        OpCost("_softmax", "softmax", 0, 10**9, 10**9, scores=2 * 10**9, tile=30_000_000),
    )
    fit = fitted()
    assert 1e3 * component_times(fit.machine, ops).seconds == pytest.approx(fit.accelerator.ms(load_of(ops)))


@pytest.mark.parametrize("name", ["tiny", "decoder"])
def test_the_stored_sums_of_a_published_point_are_those_of_the_graph(name):
    point = next(p for p in POINTS if p.name == name)
    found = load_of(trace_point(name))
    assert vars(found) == pytest.approx(vars(point.load), rel=1e-4)


@pytest.mark.slow
def test_all_stored_sums_are_those_of_the_graphs():
    for point in POINTS:
        assert vars(load_of(trace_point(point.name))) == pytest.approx(vars(point.load), rel=1e-4)
    assert ON_CHIP == 5e6


def test_the_phone_s_picture_matches_the_published_one():
    found = estimate_picture(snapgenpp(), "small", (1024, 1024), load_profile("iphone16pm"), "coreml")
    assert isinstance(found, Estimate)
    assert found.basis == "fitted"
    assert 1650 < found.ms < 1850  # 1.7 to 1.8 s published; the fit is 3 % low on a step
    assert found.low < 1750 < found.high < 2500
    assert found.ms == pytest.approx(sum(found.parts.values()) + 3 * found.parts["student_step"])


def test_what_is_derived_says_so_and_is_wider():
    phone = estimate_picture(shapes(), "full", SIZE, load_profile("iphone16pm"), "coreml")
    other = estimate_picture(shapes(), "full", SIZE, load_profile("ipadpro-m4"), "coreml")
    android = estimate_picture(shapes(), "full", SIZE, load_profile("android-mid"), "executorch:xnnpack")
    assert (phone.basis, other.basis, android.basis) == ("fitted", "derived", "derived")
    assert other.high / other.low > phone.high / phone.low
    assert android.high == pytest.approx(CPU_SLOWER * android.ms)
    assert "our choice" in " ".join(android.lines)


def test_no_figure_no_estimate():
    bare = replace(load_profile("android-mid"), figures={})
    assert "no published CPU clock" in basis_of(bare, "onnx:cpu").reason
    assert isinstance(basis_of(load_profile("iphone16pm"), "executorch:xnnpack"), NoBasis)
    assert "--calibrate" in basis_of(Host(1), "onnx:cpu").reason


def test_a_host_is_estimated_from_its_calibration():
    store(HostCalibration(key_of("onnx:cpu", 1), CPU, 0.05, {"a": 1.0}))
    narrow, wide = (estimate_picture(shapes(), w, SIZE, Host(1), "onnx:cpu") for w in ("tiny", "full"))
    assert narrow.basis == "calibrated"
    assert narrow.low < narrow.ms < wide.ms < wide.high
    more = estimate_picture(shapes(), "tiny", SIZE, Host(1), "onnx:cpu", steps=8)
    assert more.ms - narrow.ms == pytest.approx(4 * narrow.parts["student_step"])
    assert isinstance(estimate_picture(shapes(), "tiny", SIZE, Host(2), "onnx:cpu"), NoBasis)


@pytest.fixture
def measured():
    """This host drew pictures of the embedded model."""
    return measurement(key=host_key("onnx:cpu", "fp32", 1))


def test_a_measurement_replaces_the_estimate(measured):
    store(HostCalibration(key_of("onnx:cpu", 1), CPU, 0.05, {"a": 1.0}))
    before = estimate_picture(shapes(), "full", SIZE, Host(1), "onnx:cpu")
    save_measured(measured)
    found = estimate_picture(shapes(), "full", SIZE, Host(1), "onnx:cpu")
    assert (before.basis, found.basis) == ("calibrated", "measured")
    assert found.ms == measured.summary("e2e")["p50"]
    assert found.low <= found.ms <= found.high
    for what in (
        {"width": "tiny"},
        {"target": "executorch:xnnpack"},
        {"resolution": (64, 64)},
        {"threads": 2},
        {"precision": "int8"},
    ):
        wanted = {"target": "onnx:cpu", "width": "full", "resolution": SIZE, "threads": 1, "precision": "fp32"} | what
        place = wanted["target"], "shapes", wanted["width"], wanted["resolution"]
        checked = find_measured("host", *place, precision=wanted["precision"], threads=wanted["threads"])
        assert checked is None, what
    plans = plan_estimator(shapes(), Host(1), SIZE)
    assert [plans("full", "onnx:cpu", p).basis for p in ("fp32", "int8-dynamic")] == ["measured", "calibrated"]


def test_a_measurement_on_a_phone_is_kept_for_that_phone():
    there = measurement()  # a key that is not this host's
    save_measured(there)
    assert find_measured("host", there.key.backend, "shapes", "full", SIZE) is None
    assert find_measured(there.device, there.key.backend, "shapes", "full", SIZE) == there
    (measured_dir(there.device) / "a.json").write_text('{"schema_version": 0}')  # of an older version: as good as none
    assert find_measured(there.device, there.key.backend, "shapes", "full", SIZE) == there


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": "huge"}, "no width 'huge'"),
        ({"resolution": (100, 128)}, "does not fit latent factor 8"),
        ({"resolution": (72, 72)}, "72x72"),
        ({"steps": 0}, "expected 1 or more"),
        ({"target": "tflite"}, "unknown target"),
    ],
)
def test_bad_questions(change, message):
    asked = {"width": "full", "resolution": SIZE, "device": load_profile("iphone16pm"), "target": "coreml"} | change
    with pytest.raises(BadInput, match=message):
        estimate_picture(shapes(), **asked)


def test_a_sweep_grows_with_width_size_and_steps(tmp_path):
    device = load_profile("iphone16pm")
    found = sweep_estimates(shapes(), device, "coreml", ["tiny", "small", "full"], resolution=SIZE, steps=4, progress=quiet)
    assert [e.width for e in found.widths] == ["tiny", "small", "full"]
    assert [e.ms for e in found.widths] == sorted(e.ms for e in found.widths)
    for width in ("tiny", "full"):
        sizes = [e for e in found.resolutions if e.width == width]
        assert len(sizes) >= 2
        assert [e.ms for e in sizes] == sorted(e.ms for e in sizes)
        steps = [e for e in found.steps if e.width == width]
        assert [e.steps for e in steps] == [1, 2, 4, 8]
        assert [e.ms for e in steps] == sorted(e.ms for e in steps)
        assert all(e.low <= e.ms <= e.high for e in steps)
    for name in ("a.png", "b.png"):
        plot_sweep(found, device, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with pytest.raises(BadInput, match=r"ends with \.png"):
        plot_sweep(found, device, tmp_path / "a.svg")
