"""The export's own memory: predicted, refused, measured."""

from __future__ import annotations

import json

import pytest

from snapgen_deploy.bundle.reader import open_bundle
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.errors import Refused
from snapgen_deploy.export.registry import spec_of, specs
from snapgen_deploy.export.spec import Memory
from snapgen_deploy.job import begin
from snapgen_deploy.job.memory import largest, predict, refuse_what_does_not_fit, weight_bytes
from snapgen_deploy.models import PRESETS
from snapgen_deploy.plan.make import make_plan
from tests.cli.conftest import invoke, tiny_config


def arguments(checkpoint, place, *more):
    chosen = ("--device", "server", "--width", "tiny", "--checkpoint", checkpoint, "-o", place, "--threads", 1)
    return ("export", *chosen, *more)


def test_every_target_was_measured():
    unmeasured = Memory()
    for spec in specs().values():
        assert spec.memory.converting != unmeasured.converting, spec.key
        assert spec.memory.checking != unmeasured.checking, spec.key


def test_full_scale_needs_what_its_weights_say():
    config = PRESETS["snapgenpp"]()
    found = {}
    for width in ("tiny", "full"):
        profile = load_profile("android-mid").with_memory_budget(10**11)
        plan = make_plan(config, profile, width=width, targets=("onnx:cpu",), precision="fp32")
        converting = largest([p for p in predict(config, plan) if p.role])
        assert converting.what == "onnx:cpu student"
        assert converting.bytes == spec_of("onnx").memory.converting.of(weight_bytes(config, width, "student"), 0)
        worst = largest(predict(config, plan))
        assert worst.what == "onnx:cpu check"  # every component's weights, packed again by the runtime, and the activations
        found[width] = worst.bytes
    assert weight_bytes(config, "full", "student") > 4 * 1.4e9
    assert found["full"] > 2 * found["tiny"]


def test_what_a_validator_runs_counts_its_activations():
    config = PRESETS["snapgenpp"]()
    peaks = []
    for device in ("android-mid", "server"):
        plan = make_plan(config, load_profile(device), width="small", targets=("onnx:cpu",), precision="fp32")
        peaks.append({p.role: p.bytes for p in predict(config, plan) if p.role})
    plain, validated = peaks
    assert validated["text_encoder"] == plain["text_encoder"]
    assert validated["student"] >= 3.43e9  # measured at 1024 x 1024, benchmarks/results/scale.md
    assert validated["decoder"] >= 1.97e9


def test_refused_only_beyond_what_there_is():
    config = tiny_config()
    predictions = predict(config, make_plan(config, load_profile("server"), width="tiny"))
    most = largest(predictions).bytes
    refuse_what_does_not_fit(predictions, most)
    refuse_what_does_not_fit(predictions, None)
    with pytest.raises(Refused, match=r"about .* GB .*available .* GB, does not fit"):
        refuse_what_does_not_fit(predictions, most - 1)


def test_too_little_memory_is_refused_before_work_starts(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(begin, "available_bytes", lambda: 64 * 2**20)
    done = invoke(*arguments(checkpoint, tmp_path, "--json"))
    assert done.exit_code == 3
    assert len(done.stderr.strip().splitlines()) == 1
    assert "available 0.07 GB, does not fit" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_shows_the_prediction(checkpoint, tmp_path):
    done = invoke(*arguments(checkpoint, tmp_path, "--dry-run"))
    assert done.exit_code == 0, done.output
    assert "exporting here takes about" in done.stdout
    memory = json.loads(invoke(*arguments(checkpoint, tmp_path, "--dry-run", "--json")).stdout)["export_memory"]
    assert memory["predicted_peak_bytes"] == max(memory["reference"], *memory["targets"]["onnx:cpu"].values())
    assert set(memory["targets"]["onnx:cpu"]) == {"student", "decoder", "text_encoder", "check"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("converted_anew")
def test_the_measured_peaks_are_recorded_and_near_the_prediction_and_what_is_cached_is_not_refused(
    checkpoint, tmp_path, monkeypatch
):
    predicted = json.loads(invoke(*arguments(checkpoint, tmp_path, "--dry-run", "--json")).stdout)["export_memory"]
    done = invoke(*arguments(checkpoint, tmp_path / "a"))
    assert done.exit_code == 0, done.output
    assert "peak memory: reference" in done.stdout
    run = open_bundle(tmp_path / "a" / "tiny-test-server").run()
    target = run["targets"]["onnx:cpu"]
    assert 50e6 < target["check_peak_bytes"] < 2 * predicted["targets"]["onnx:cpu"]["check"]
    assert run["reference_peak_bytes"] < 2 * predicted["reference"]
    assert run["export_peak_bytes"] == max(target["export_peak_bytes"].values())
    for role, peak in target["export_peak_bytes"].items():
        assert 0.5 * peak < predicted["targets"]["onnx:cpu"][role] < 2 * peak
    monkeypatch.setattr(begin, "available_bytes", lambda: 600 * 10**6)
    again = invoke(*arguments(checkpoint, tmp_path / "b"))
    assert again.exit_code == 0, again.output
