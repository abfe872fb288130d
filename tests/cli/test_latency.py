import json
import math
import random
import shutil
import statistics
from dataclasses import replace
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from snapgen_deploy.bundle.reader import SUMS, Bundle, open_bundle, write_manifest
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.errors import BadInput, Refused
from snapgen_deploy.latency.compare import duel
from snapgen_deploy.latency.compare.compare import CAP_SECONDS, compare_bundles, refuse_unlike
from snapgen_deploy.latency.compare.duel import DuelRound, Sides, abba, interleaved, mode_for
from snapgen_deploy.latency.compare.verdict import parse_threshold
from snapgen_deploy.latency.environment import host_key
from snapgen_deploy.latency.estimate.bundle_estimate import for_measurement
from snapgen_deploy.latency.estimate.calibrate import HostCalibration, key_of, store
from snapgen_deploy.latency.estimate.cost_ops import OP_KINDS
from snapgen_deploy.latency.estimate.estimate_measured import find_measured
from snapgen_deploy.latency.estimate.machine import Machine, Rate
from snapgen_deploy.latency.links.base import DeviceState, SampleBlock
from snapgen_deploy.latency.measure import host
from snapgen_deploy.latency.measure.session import open_session
from snapgen_deploy.latency.results import RUN_PROFILES, DeviceKey, Loads, read_measurement
from snapgen_deploy.system.child import start_method
from tests.cli.conftest import invoke
from tests.latency.estimate.conftest import quiet
from tests.latency.test_results import measurement


@pytest.fixture
def changed(bundle, tmp_path):
    """A copy of the bundle whose manifest says what the test makes it say; its hashes hold."""

    def make(change):
        copy = tmp_path / bundle.name
        shutil.copytree(bundle, copy)
        manifest = json.loads((copy / "manifest.json").read_text())
        change(manifest)
        (copy / SUMS).unlink()
        write_manifest(copy, manifest)
        return copy

    return make


def lose_a_delegate(manifest):
    manifest["targets"]["executorch:xnnpack"]["components"]["student"]["portable_ops"] = {"expand_copy": 2}


def test_bench_keeps_every_sample_and_writes_every_format(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(host, "FRESH", start_method())  # six fresh interpreters would take most of this test
    monkeypatch.setitem(RUN_PROFILES, "rapid", replace(RUN_PROFILES["rapid"], seconds=0.5))
    native, plot = tmp_path / "native.json", tmp_path / "plot.png"
    options = ("--target", "onnx:cpu", "--threads", 1, "-o", native, "--plot", plot)
    done = invoke("bench", bundle, *options)
    assert done.exit_code == 0, done.output
    assert "p90 ≤" in done.stdout
    found = read_measurement(native)
    assert json.loads(native.read_text())["validity"]["min_queries_met"]
    summary = found.summary()
    assert summary["n"] >= 64
    assert summary["p50"] <= summary["p90_bound"] <= summary["maximum"]
    assert len(found.samples("student")) == 4 * summary["n"]
    assert sum(found.summary(n)["mean"] * k for n, k in (("text_encoder", 1), ("student", 4), ("decoder", 1))) < summary["mean"]
    assert found.loads.cold > 0
    assert found.peak_bytes > 10**7
    assert found.key.threads == 1
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "estimate_ms" not in found.environment  # this host is not calibrated


def test_a_calibrated_host_s_measurement_carries_its_estimate(bundle):
    rates = {k: Rate(op=1e-6, mac=1e-10, read=1e-10) for k in OP_KINDS}
    store(HostCalibration(key_of("onnx:cpu", 1), Machine(rates), 0.05, {"a": 1.0}))
    opened = open_bundle(bundle)
    result = measurement(key=host_key("onnx:cpu", "fp32", 1))
    result = replace(result, bundle=bundle.name, width=opened.manifest["width"], resolution=opened.config.resolution)
    found = for_measurement(opened, result, on_host=True)
    assert found["estimate_basis"] == "calibrated"
    assert 0 < float(found["estimate_low_ms"]) < float(found["estimate_ms"]) < float(found["estimate_high_ms"])
    phone = replace(result, key=replace(result.key, backend="coreml"))
    (listed,) = [e for e in opened.manifest["estimates"] if e["target"] == "coreml"]
    assert listed["basis"] == "fitted"
    assert for_measurement(opened, phone, on_host=False)["estimate_ms"] == str(listed["ms"])


def test_one_query_of_executorch_times_every_call(bundle):
    session = open_session(open_bundle(bundle), "executorch:xnnpack", 1)
    times = session.query()
    assert {name: len(values) for name, values in times.items()} == {"e2e": 1, "text_encoder": 1, "student": 4, "decoder": 1}
    assert sum(sum(times[n]) for n in ("text_encoder", "student", "decoder")) <= times["e2e"][0]


class FakePhone:
    """A link that takes a job and answers with made-up times."""

    name, e2e_is, never_run_on_hardware = "adb", "composed", True

    def __init__(self):
        self.restored = 0
        self.jobs = []

    def key(self, job):
        return DeviceKey("chip", "build", job.target, "1.4.1", job.precision, job.threads, "fixed")

    def environment(self):
        return {"model": "a phone"}

    def state(self):
        return DeviceState(thermal=0, battery_percent=90.0, battery_celsius=30.0, low_power=False)

    def prepare(self, job):
        self.jobs.append(job)

    def load(self, job):
        return Loads(first_ever=900.0, cold=200.0)

    def run(self, job, warmups, queries):
        times = {role: tuple(10.0 + i / 100 for i in range(n * queries)) for role, n in job.calls.items()}
        return SampleBlock(times, self.state(), self.state())

    def memory(self, job):
        return 10**8

    def restore(self):
        self.restored += 1


def test_bench_over_a_link_composes_pictures_and_says_what_was_never_run(bundle, monkeypatch, tmp_path):
    phone = FakePhone()
    monkeypatch.setattr("snapgen_deploy.latency.links.registry.LINKS", {"adb": lambda which, options, shell: phone})
    monkeypatch.setattr("snapgen_deploy.latency.links.session.BURST_PAUSE", 0.0)
    done = invoke("bench", bundle, "--link", "adb", "-o", tmp_path / "phone.json")
    assert done.exit_code == 0, done.output
    assert "never run on hardware" in " ".join(done.stdout.split())
    found = read_measurement(tmp_path / "phone.json")
    assert found.key.backend == "executorch:xnnpack"
    assert found.e2e_is == "composed"
    assert found.summary()["p50"] == pytest.approx(6 * 10.5, rel=0.1)  # text encoder, four steps, decoder
    assert phone.restored
    (job,) = phone.jobs
    manifest = json.loads((bundle / "manifest.json").read_text())
    for role, files in job.inputs.items():
        ports = manifest["targets"][job.target]["components"][role]["inputs"]
        assert [f.name.split("-", 2)[2] for f in files] == [f"{p['name']}.bin" for p in ports]


@pytest.mark.parametrize("option", ["runner", "=x", ""])
def test_a_malformed_link_option(bundle, option):
    done = invoke("bench", bundle, "--link", "adb", "--link-option", option)
    assert done.exit_code == 2
    assert "expected NAME=VALUE" in done.stderr


def test_an_unknown_link_and_a_target_it_does_not_run(bundle):
    unknown = invoke("bench", bundle, "--link", "usb")
    assert unknown.exit_code == 2
    assert "no link 'usb'" in unknown.stderr
    wrong = invoke("bench", bundle, "--link", "mac", "--target", "onnx:cpu")
    assert wrong.exit_code == 2
    assert "mac runs coreml" in wrong.stderr


def test_core_ml_is_not_timed_where_it_does_not_run(bundle):
    done = invoke("bench", bundle, "--target", "coreml")
    assert done.exit_code == 4
    assert "not for their speed" in done.stderr


def test_a_round_of_each_order_times_both_sides(bundle):
    sides = Sides(bundle, bundle, "onnx:cpu", 1, pairs=4)
    for one_round in (interleaved, abba):
        found = one_round(sides, 0)
        assert set(found.base) == set(found.change) == set(found.bias) >= {"e2e_p50", "student_p90", "load_p50"}
        assert found.base["e2e_p50"] > 2 * found.base["student_p50"] > 0  # a picture takes four calls of the student
        assert found.base["e2e_p90"] >= found.base["e2e_p50"]
        assert max(abs(found.change["e2e_p50"]), abs(found.bias["e2e_p50"])) < 2  # the same bundle three times


def test_models_that_do_not_fit_into_memory_together_are_timed_one_by_one():
    assert mode_for("onnx:cpu", "auto", 10**9, 2 * 10**9) == "interleaved"
    assert mode_for("onnx:cpu", "auto", 10**9, 2 * 10**9 - 1) == "abba"
    assert mode_for("onnx:cpu", "auto", 10**9, None) == "interleaved"
    assert mode_for("onnx:cpu", "interleaved", 10**9, 0) == "interleaved"


@pytest.mark.parametrize("one_round", [interleaved, abba])
@pytest.mark.parametrize("number", [0, 1])
def test_each_side_keeps_its_own_times(monkeypatch, tmp_path, one_round, number):
    slow = tmp_path / "slow"

    def fake_session(bundle, key, threads):
        ms = 20.0 if bundle == slow else 10.0
        return SimpleNamespace(load_ms=ms / 2, query=lambda: {"e2e": [ms], "student": [ms / 5] * 4})

    monkeypatch.setattr(duel, "open_bundle", lambda path: path)
    monkeypatch.setattr(duel, "open_session", fake_session)
    monkeypatch.setattr(duel, "in_fresh_process", lambda what, function, *arguments: function(*arguments))
    found = one_round(Sides(tmp_path / "fast", slow, "onnx:cpu", 1, pairs=4), number)
    assert (found.base["e2e_p50"], found.base["student_p90"], found.base["load_p50"]) == pytest.approx((10, 2, 5))
    for metric in ("e2e_p50", "student_p90", "load_p50"):
        assert (found.change[metric], found.bias[metric]) == pytest.approx((math.log(2), 0))


def test_calls_that_follow_each_other_are_compared_with_each_other():
    """A machine that gets slower within a round: the median of changes is exact, the ratio of medians is not."""
    mood = [1.0, 2.0, 4.0, 8.0, 16.0]
    again, candidate = [1.1 * m for m in mood], [*(1.5 * m for m in mood[:4]), 9.0]
    times = {side: {"e2e": calls} for side, calls in (("base", mood), ("again", again), ("candidate", candidate))}
    found = {s: {"e2e_p50": sorted(t["e2e"])[2], "e2e_p90": max(t["e2e"]), "load_p50": 3.0} for s, t in times.items()}
    made = duel.round_of(found, times, (1.0, 1.0))
    assert made.bias == pytest.approx({"e2e_p50": math.log(1.1), "e2e_p90": math.log(1.1), "load_p50": 0})
    assert made.change["e2e_p50"] == pytest.approx(math.log(1.5 / math.sqrt(1.1)))
    assert made.change["e2e_p90"] == pytest.approx(math.log(12 / 16 / math.sqrt(1.1)))
    uneven = {**times, "candidate": {"e2e": [6.0]}}  # fewer calls, as of a schedule with fewer steps
    assert duel.round_of(found, uneven, (1.0, 1.0)).change["e2e_p50"] == pytest.approx(math.log(6 / 4 / math.sqrt(1.1)))


def test_a_bundle_against_itself_is_no_regression(bundle, tmp_path):
    junit, output, summary = tmp_path / "x.xml", tmp_path / "x.json", tmp_path / "summary.md"
    limits = ("--fail-on", "e2e_p50:60%", "--target", "onnx:cpu", "--max-rounds", 10, "--inconclusive", "pass")
    done = invoke("compare", bundle, bundle, *limits, "--junit", junit, "-o", output, "--summary", summary, "--annotations")
    assert done.exit_code == 0, done.output
    record = json.loads(output.read_text())
    assert record["verdict"] in ("ok", "improved", "inconclusive")
    assert {g["verdict"] for g in record["guards"]} == {"same"}
    assert ElementTree.parse(junit).getroot().tag == "testsuites"
    assert "73 deterministic guards unchanged" in summary.read_text()


def test_a_lost_delegate_fails_before_any_clock(bundle, changed):
    copy = changed(lose_a_delegate)
    done = invoke("compare", bundle / "manifest.json", copy, "--guards-only")
    assert done.exit_code == 1
    assert "expand_copy absent -> 2" in done.stdout
    assert "verdict: failed" in done.stdout
    same = invoke("compare", bundle, bundle, "--guards-only")
    assert same.exit_code == 0
    assert "0 changed" in same.stdout


def test_a_change_that_the_profile_lets_pass_is_reported(bundle, changed):
    copy = changed(lambda m: m["targets"]["onnx:cpu"]["versions"].update(onnx="9.9"))
    done = invoke("compare", bundle, copy, "--guards-only")
    assert done.exit_code == 0
    assert "changed onnx:cpu versions" in done.stdout


@pytest.mark.parametrize(("guards", "code"), [(["portable_ops"], 1), (["versions"], 0)])
def test_the_guards_are_those_of_the_profile_at_the_export(bundle, changed, tmp_path, guards, code):
    def mine(manifest):
        lose_a_delegate(manifest)
        manifest["device"].update(id="myphone", guards=guards)

    own = json.loads((bundle / "manifest.json").read_text())
    assert own["device"]["guards"] == list(load_profile("iphone16pm").guards)
    own["device"]["guards"] = []
    (tmp_path / "base.json").write_text(json.dumps(own))
    assert invoke("compare", tmp_path / "base.json", changed(mine), "--guards-only").exit_code == code


def test_a_change_that_drops_a_guard_is_told_and_still_held_to_it(bundle, changed):
    def dropped(manifest):
        lose_a_delegate(manifest)
        manifest["device"]["guards"] = []

    done = invoke("compare", bundle, changed(dropped), "--guards-only")
    assert done.exit_code == 1
    assert "changed device guards" in done.stdout


def test_the_clock_alone_asks_no_guards_and_needs_files(bundle, changed, monkeypatch):
    rounds_of(monkeypatch, change=0.0, spread=0.01, seconds=0.1)
    copy = changed(lose_a_delegate)
    done = invoke("compare", bundle, copy, "--clock-only", "--target", "onnx:cpu", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["guards"] == []
    alone = invoke("compare", bundle / "manifest.json", copy)
    assert alone.exit_code == 2
    assert "has no files to time; give the bundle, or add --guards-only" in alone.stderr


def test_what_only_warns_never_fails(bundle, changed, monkeypatch):
    rounds_of(monkeypatch, change=0.0, spread=0.3, seconds=0.1)
    limits = ("--target", "onnx:cpu", "--warn-on", "e2e_p50:1%", "--json")
    done = invoke("compare", bundle, changed(lambda m: m.update(prompts=[])), *limits)
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert not record["self_check"]["passed"]
    assert record["metrics"][0]["verdict"] == "inconclusive"


def test_unlike_bundles_are_not_comparable(bundle, changed):
    copy = changed(lambda m: m.update(width="tiny"))
    with pytest.raises(Refused, match="base has width small, candidate tiny"):
        refuse_unlike(open_bundle(bundle), open_bundle(copy), "onnx:cpu")
    for more in (("--target", "onnx:cpu"), ("--guards-only",)):
        done = invoke("compare", bundle, copy, *more)
        assert done.exit_code == 3
        assert "base has width small, candidate tiny" in done.stderr


def rounds_of(monkeypatch, change, spread, seconds):
    """Made-up rounds that take so many seconds by a made-up clock; returns the clock."""
    clock = [0.0]

    def one(sides, number):
        clock[0] += seconds
        noise = spread if number % 2 else -spread
        return DuelRound({"e2e_p50": 10.0}, {"e2e_p50": change + noise}, {"e2e_p50": noise}, (1.0, 1.0))

    monkeypatch.setattr("snapgen_deploy.latency.compare.compare.interleaved", one)
    monkeypatch.setattr("snapgen_deploy.latency.compare.compare.time.monotonic", lambda: clock[0])
    return clock


@pytest.mark.parametrize(("seconds", "rounds"), [(1.0, 30), (8.0, 20), (11.0, 10)])
def test_an_undecided_comparison_stops_before_its_cap(bundle, changed, monkeypatch, seconds, rounds):
    clock = rounds_of(monkeypatch, change=0.045, spread=0.025, seconds=seconds)  # nearly the limit: not clear
    other = open_bundle(changed(lambda m: m.update(prompts=[])))
    found = compare_bundles(open_bundle(bundle), other, "onnx:cpu", [parse_threshold("e2e_p50:5%")], (), quiet)
    assert (found.rounds, found.verdict) == (rounds, "inconclusive")
    assert clock[0] <= CAP_SECONDS
    assert ("stopped after" in " ".join(found.notes)) == (rounds < 30)


def test_rounds_that_take_long_have_fewer_calls_and_too_long_ones_are_not_run(bundle, changed, monkeypatch):
    asked = []

    def one(sides, number):
        asked.append(sides.pairs)
        clock[0] += per_call[0] * 3 * (2 + sides.pairs)
        return DuelRound({"e2e_p50": 10.0}, {"e2e_p50": number % 3 / 1000}, {"e2e_p50": number % 2 / 1000}, (1.0, 1.0))

    clock, per_call = rounds_of(monkeypatch, 0, 0, 0), [1.0]
    monkeypatch.setattr("snapgen_deploy.latency.compare.compare.interleaved", one)
    sides = open_bundle(bundle), open_bundle(changed(lambda m: m.update(prompts=[])))
    found = compare_bundles(*sides, "onnx:cpu", [parse_threshold("e2e_p50:5%")], (), quiet)
    assert found.verdict == "ok"
    assert asked == [4] + [3] * 10
    assert clock[0] <= CAP_SECONDS

    clock[0], per_call[0], asked[:] = 0.0, 10.0, []
    found = compare_bundles(*sides, "onnx:cpu", [parse_threshold("e2e_p50:5%")], (), quiet)
    assert (found.verdict, found.metrics, len(asked)) == ("inconclusive", (), 2)
    assert "a round takes 150 s, at least 10 must fit into 170 s; allow --max-seconds 1800" in found.notes[0]


@pytest.mark.parametrize(
    ("noise", "change", "limits", "verdict"),
    [
        (0.2, 0.7, ["e2e_p50:5%"], "regressed"),  # twice as slow is told on the noisiest machine
        (0.2, 0.0, ["e2e_p50:5%"], "inconclusive"),
        (0.2, -0.7, ["e2e_p50:5%"], "inconclusive"),
        (0.2, 0.0, ["e2e_p50:300%"], "ok"),
    ],
)
def test_a_machine_too_noisy_for_its_limit_still_tells_a_large_regression(
    bundle, changed, monkeypatch, noise, change, limits, verdict
):
    rounds_of(monkeypatch, change=change, spread=noise, seconds=0.1)
    other = open_bundle(changed(lambda m: m.update(prompts=[])))
    found = compare_bundles(open_bundle(bundle), other, "onnx:cpu", [parse_threshold(t) for t in limits], (), quiet)
    assert found.verdict == verdict
    assert found.self_check.passed == (limits != ["e2e_p50:5%"])
    assert found.metrics


@pytest.mark.parametrize(("change", "verdict"), [(0.0, "inconclusive"), (0.03, "inconclusive"), (0.1, "regressed")])
def test_a_machine_that_prefers_one_side_tells_only_what_is_larger(bundle, changed, monkeypatch, change, verdict):
    clock = rounds_of(monkeypatch, 0, 0, 0)

    def one(sides, number):
        clock[0] += 0.1
        same = 0.08 + 0.01 * (-1) ** number
        return DuelRound({"e2e_p50": 10.0}, {"e2e_p50": same + change}, {"e2e_p50": same}, (1.0, 1.0))

    monkeypatch.setattr("snapgen_deploy.latency.compare.compare.interleaved", one)
    other = open_bundle(changed(lambda m: m.update(prompts=[])))
    found = compare_bundles(open_bundle(bundle), other, "onnx:cpu", [parse_threshold("e2e_p50:5%")], (), quiet)
    assert (found.self_check.biased, found.verdict) == (True, verdict)


def test_stored_baselines(bundle, tmp_path, monkeypatch):
    made = []

    def measure(opened, key, profile, mode, threads, progress):
        made.append(key)
        return measurement(scale=1.0 + len(made) / 100 if len(made) < 6 else 2.0)

    monkeypatch.setattr("snapgen_deploy.latency.compare.run.measure_host", measure)
    options = ("--baseline", tmp_path / "stored", "--target", "onnx:cpu", "--fail-on", "e2e_p50:20%")
    missing = invoke("compare", bundle, *options)
    assert missing.exit_code == 3
    assert "--update-baseline" in missing.stderr
    assert "run 1; 3 are needed" in " ".join(invoke("compare", bundle, *options, "--update-baseline").stderr.split())
    output = tmp_path / "few.json"
    few = invoke("compare", bundle, *options, "--missing-baseline", "warn", "-o", output)
    assert few.exit_code == 0, few.output
    record = json.loads(output.read_text())
    assert (record["verdict"], record["metrics"]) == ("inconclusive", [])
    assert "holds 1 runs, at least 3 are needed" in record["notes"][0]
    for _ in range(2):
        assert invoke("compare", bundle, *options, "--update-baseline").exit_code == 0
    slower = invoke("compare", bundle, *options)
    assert slower.exit_code == 1, slower.output
    assert "regressed" in slower.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--fail-on", "e2e:5%"), "expected METRIC:PERCENT%"),
        (("--order", "random"), "--order: got 'random'"),
        (("--inconclusive", "ignore"), "expected one of pass, warn, fail"),
        (("--baseline", "x"), "expected CANDIDATE alone"),
        (("--target", "onnx:cuda"), "holds the targets"),
        (("--target", "onnx", "--guards-only"), "--target belongs to the clock"),
        (("--missing-baseline", "warn"), "--missing-baseline belongs to --baseline DIR"),
        (("--baseline", "x", "--guards-only"), "--guards-only belongs to BASE CANDIDATE"),
        (("--baseline", "x", "--order", "abba"), "--order belongs to BASE CANDIDATE"),
        (("--baseline", "x", "--max-seconds", "9"), "--max-seconds belongs to BASE CANDIDATE"),
        (("--baseline", "x", "--update-baseline", "-o", "x.json"), "--output belongs to a comparison"),
        (("--clock-only", "--guards-only"), "--clock-only belongs to BASE CANDIDATE with a clock"),
    ],
)
def test_bad_usage_of_compare(bundle, arguments, words):
    done = invoke("compare", bundle, bundle, *arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_result_of_this_host_is_kept_for_the_device_that_it_is(bundle, monkeypatch):
    monkeypatch.setattr("snapgen_deploy.latency.measure.host.measure_host", lambda *_: measurement())
    done = invoke("bench", bundle, "--target", "onnx:cpu", "--save-as", "server")
    assert done.exit_code == 0, done.output
    assert "—: the bound of p99 needs 662 pictures; 80 were drawn; --profile normal draws 1024" in done.stdout
    assert "estimates for server rest on it" in " ".join(done.stderr.split())
    assert find_measured("server", "onnx:cpu", "shapes", "full", (128, 128)) is not None
    assert find_measured("host", "onnx:cpu", "shapes", "full", (128, 128)) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--profile", "endless"), "rapid, quick, normal"),
        (("--format", "xml"), "no format 'xml'"),
        (("--save-as", "toaster"), "unknown device 'toaster'"),
        (("--save-as", "server", "--link", "mac"), "leave --link and --save out"),
    ],
)
def test_bad_usage_of_bench(bundle, arguments, words):
    done = invoke("bench", bundle, *arguments)
    assert done.exit_code == 2
    assert words in done.stderr


def test_a_metric_that_only_warns_neither_stops_the_clock_nor_asks_for_more(bundle, changed, monkeypatch):
    rounds_of(monkeypatch, change=0.0, spread=0.01, seconds=0.1)
    thresholds = [parse_threshold("e2e_p50:10%"), parse_threshold("e2e_p50:0.1%", warn=True)]
    other = open_bundle(changed(lambda m: m.update(prompts=[])))
    found = compare_bundles(open_bundle(bundle), other, "onnx:cpu", thresholds, (), quiet)
    assert (found.verdict, found.rounds, found.self_check.passed) == ("ok", 10, True)


def test_a_metric_of_a_component_that_is_not_there_is_one_line(bundle):
    opened = open_bundle(bundle)
    monkey = Bundle(opened.path, json.loads(json.dumps(opened.manifest)))
    del monkey.manifest["targets"]["onnx:cpu"]["components"]["text_encoder"]
    with pytest.raises(BadInput, match="text_encoder_p50: .* has no text_encoder, only"):
        compare_bundles(opened, monkey, "onnx:cpu", [parse_threshold("text_encoder_p50:5%")], (), quiet)


def test_saving_what_cannot_be_the_bundle_s_device_is_refused_before_it_is_measured(bundle):
    done = invoke("bench", bundle, "--link", "mac", "--save")
    assert done.exit_code == 2
    assert "--link mac reaches no such device" in done.stderr


def test_slow_calls_now_and_then_make_no_side_faster():
    """One call in five takes longer, on every side alike: the mean of many rounds' changes is zero."""
    draw = random.Random(5)

    def calls():
        return {"e2e": [draw.gauss(50, 0.5) * (draw.uniform(1.1, 1.5) if draw.random() < 0.2 else 1) for _ in range(4)]}

    made = [
        duel.round_of({side: {"e2e_p50": 50.0} for side in sides}, {side: calls() for side in sides}, (1.0, 1.0))
        for sides in [("base", "again", "candidate")] * 4000
    ]
    assert abs(statistics.fmean(r.change["e2e_p50"] for r in made)) < 0.003
    assert abs(statistics.fmean(r.bias["e2e_p50"] for r in made)) < 0.003
