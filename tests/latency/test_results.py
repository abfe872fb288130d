import json
import random
from dataclasses import replace

import pytest

from snapgen_deploy.errors import BadInput, Refused
from snapgen_deploy.latency.compare.baseline import (
    MOST_RUNS,
    baseline_path,
    find_baseline,
    judge_stored,
    read_baseline,
    store_baseline,
)
from snapgen_deploy.latency.compare.verdict import parse_threshold
from snapgen_deploy.latency.results import RUN_PROFILES, DeviceKey, Loads, Measurement, Round, read_measurement
from snapgen_deploy.system.typed import read_as

KEY = DeviceKey("chip", "os 1", "onnx:cpu", "1.31", "fp32", 1, "performance")


def measurement(scale=1.0, key=KEY, **changes):
    rounds = tuple(
        Round({"e2e": tuple(scale * (50 + i + j / 10) for j in range(10)), "decoder": (scale * 5.0,) * 10}) for i in range(8)
    )
    discarded = Round({"e2e": (999.0,), "decoder": (999.0,)}, False, "the canary moved by 40 %", (1.0, 1.4))
    return Measurement(
        bundle="shapes-server", bundle_sha256="ab", device="server", width="full", resolution=(128, 128), steps=4, key=key,
        profile="rapid", mode="burst", e2e_is="measured", rounds=(*rounds, discarded), loads=Loads(cold=100.0),
        peak_bytes=10**8, environment={"python": "3.11"}, **changes,
    )  # fmt: skip


def test_discarded_rounds_are_kept_and_not_counted():
    found = measurement()
    assert len(found.rounds) == 9
    summary = found.summary()
    assert summary["n"] == 80
    assert summary["maximum"] < 999
    assert summary["p90_bound"] == sorted(found.samples())[-1]  # 80 queries: t = 1
    assert summary["p99_bound"] is None
    assert found.names == ("e2e", "decoder")


def test_mlperf_s_flags():
    found = measurement().validity(RUN_PROFILES["rapid"])
    assert found == {"min_queries_met": True, "min_duration_met": False, "early_stopping_met": True}


def test_json_and_back():
    found = measurement()
    assert read_as(Measurement, json.loads(json.dumps(found.as_dict()))) == (found, [])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "latency", "schema_version": 1}', '{"kind": "comparison"}'])
def test_a_file_that_is_no_measurement(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"not a latency measurement|is not readable JSON"):
        read_measurement(path)


@pytest.mark.parametrize("changes", [{"loads": {"cold": "x"}}, {"loads": {"warm": [[]]}}, {"peak_bytes": "1"}, {"steps": None}])
def test_a_measurement_with_texts_for_numbers_is_none(tmp_path, changes):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(measurement().as_dict() | changes))
    with pytest.raises(BadInput, match="not a latency measurement"):
        read_measurement(path)


def test_keys_tell_what_differs():
    other = DeviceKey("chip", "os 2", "onnx:cpu", "1.31", "fp32", 2, "performance")
    assert KEY.differences(other) == ["os_build: os 1, not os 2", "threads: 1, not 2"]
    assert KEY.id != other.id


def test_a_baseline_is_found_by_its_key_and_refused_across_keys(tmp_path):
    first = measurement()
    assert find_baseline(tmp_path, first) == ()
    assert store_baseline(tmp_path, first) == (baseline_path(tmp_path, first), 1)
    (stored,) = find_baseline(tmp_path, first)
    assert stored.summary()["p50"] == pytest.approx(first.summary()["p50"], rel=1e-3)
    other = measurement(key=DeviceKey("chip", "os 1", "onnx:cpu", "1.31", "fp32", 2, "performance"))
    with pytest.raises(Refused, match="threads: 1, not 2"):
        find_baseline(tmp_path, other)


def test_storing_twice_gives_the_same_bytes(tmp_path):
    first, second = (store_baseline(tmp_path / name, measurement())[0] for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_runs_are_added_the_newest_are_kept_and_those_of_another_picture_go(tmp_path):
    for i in range(MOST_RUNS + 2):
        path, count = store_baseline(tmp_path, measurement(1 + i / 100))
    assert count == MOST_RUNS == len(read_baseline(path))
    assert read_baseline(path)[-1].summary()["p50"] == pytest.approx(measurement(1.21).summary()["p50"], rel=1e-3)
    assert store_baseline(tmp_path, replace(measurement(), steps=8)) == (path, 1)


def test_a_file_that_is_no_baseline_is_one_line(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(measurement().as_dict()))  # of an earlier version
    said = "not a baseline of this version: kind: got 'latency', expected one of baseline; runs: got nothing, .*; remove it"
    with pytest.raises(BadInput, match=said):
        read_baseline(path)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (["x", 1.0], "runs[0].rounds[0].samples.e2e[0]: got 'x', expected a finite number"),
        ([True], "runs[0].rounds[0].samples.e2e[0]: got true, expected a finite number"),
        ([10**400], "runs[0].rounds[0].samples.e2e[0]: got 1000"),
        (["x" * 20_000] * 1000, "; and 9"),
        ({}, "runs[0].rounds[0].samples.e2e: got {}, expected a list"),
    ],
)
def test_what_is_no_time_among_stored_samples_is_told(tmp_path, samples, said):
    path, _ = store_baseline(tmp_path, measurement())
    data = json.loads(path.read_text())
    data["runs"][0]["rounds"][0]["samples"]["e2e"] = samples
    path = tmp_path / "x.json"
    path.write_text(json.dumps(data))
    with pytest.raises(BadInput) as caught:
        read_baseline(path)
    assert said in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) <= 300


@pytest.mark.parametrize(
    ("scale", "limit", "verdict"), [(1.0, 3, "inconclusive"), (1.0, 30, "ok"), (1.5, 3, "regressed"), (0.6, 3, "improved")]
)
def test_a_run_is_judged_by_how_far_stored_runs_lie_apart(scale, limit, verdict):
    runs = [measurement(s) for s in (0.98, 1.0, 1.02, 0.99, 1.01)]
    (found,) = judge_stored(runs, measurement(scale), [parse_threshold(f"e2e_p50:{limit}%")])
    assert found.verdict == verdict  # runs that wander by 1.6 % cannot exclude 3 %
    assert found.change == pytest.approx(scale - 1, abs=0.001)
    assert len(found.rounds) == 5


def test_equal_runs_that_differ_as_processes_do_are_rarely_called_different():
    draw, called = random.Random(1), []
    for _ in range(200):
        *runs, new = [measurement(draw.lognormvariate(0, 0.027)) for _ in range(6)]
        called += [m.verdict for m in judge_stored(runs, new, [parse_threshold("e2e_p50:5%")])]
    assert called.count("regressed") + called.count("improved") <= 8  # 1.7 % each way by construction


def test_what_a_baseline_does_not_hold(tmp_path):
    with pytest.raises(BadInput, match="not in stored baselines"):
        judge_stored([measurement()] * 3, measurement(), [parse_threshold("load_p50:3%")])
    with pytest.raises(Refused, match="2 runs have it, 3 and the candidate's are needed"):
        judge_stored([measurement()] * 2, measurement(), [parse_threshold("e2e_p50:3%")])


@pytest.mark.parametrize("change", [{"resolution": (64, 64)}, {"steps": 8}, {"mode": "sustained"}])
def test_a_baseline_of_another_kind_of_picture_is_refused(change):
    with pytest.raises(Refused, match=f"the baseline has {next(iter(change))}"):
        judge_stored([measurement()] * 3, replace(measurement(), **change), [parse_threshold("e2e_p50:5%")])
