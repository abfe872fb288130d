"""Full scale, with seeded weights: the 0.43B network through the command line; an hour, 20 GB of disk.

pytest -m slow tests/test_full_scale.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from snapgen_deploy.checkpoint import open_checkpoint
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.job.memory import predict
from snapgen_deploy.plan.make import make_plan
from tests.cli.conftest import invoke

pytestmark = pytest.mark.slow
DEVICE, TARGETS = "android-mid", ("executorch:xnnpack", "onnx:cpu")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("full") / "snapgenpp"
    done = invoke("init", "--preset", "snapgenpp", "-o", place)
    assert done.exit_code == 0, done.output
    return place


@pytest.fixture(scope="module")
def exported(full: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("bundles")
    targets = [argument for key in TARGETS for argument in ("--target", key)]
    done = invoke(
        "export", "--device", DEVICE, "--width", "small", *targets, "--checkpoint", full, "-o", out, "--no-cache", "--json"
    )
    assert done.exit_code == 0, done.output
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("key", TARGETS)
def test_one_step_and_the_picture_agree_with_the_reference(exported, key):
    compared = [g for g in exported["gates"] if g["target"] == key and g["name"] in ("relative_error", "psnr")]
    components = {(role, "relative_error") for role in ("text_encoder", "student", "decoder")}
    assert {(g["component"], g["name"]) for g in compared} == components | {("pipeline", "psnr")}
    assert all(g["verdict"] == "passed" for g in compared), compared


@pytest.mark.parametrize("role", ["student", "decoder"])
def test_one_delegate_and_nothing_beside_it(exported, role):
    component = exported["targets"]["executorch:xnnpack"]["components"][role]
    assert component["placement"] == {"XnnpackBackend": 1, "portable": 0}
    assert component["portable_ops"] == {}


def test_memory_stays_within_what_was_predicted(exported, full):
    config, run = open_checkpoint(full).config, exported["run"]
    for predicted in predict(config, make_plan(config, load_profile(DEVICE), width="small", targets=TARGETS)):
        if predicted.target is None:
            peak = run["reference_peak_bytes"]
        else:
            of = run["targets"][predicted.target.key]
            peak = of["export_peak_bytes"][predicted.role] if predicted.role else of["check_peak_bytes"]
        assert peak <= predicted.bytes, (predicted.what, peak)


def test_core_ai_s_runtime_holds_the_small_network(full: Path, tmp_path: Path) -> None:
    """At 256 x 256 with one prompt: a call of the student takes minutes in Apple's runtime on Linux."""
    pytest.importorskip("coreai_torch", reason="the extra `coreai` is not installed")
    (tmp_path / "prompts.txt").write_text("a red ring on a gray background\n")
    chosen = ("--target", "coreai", "--width", "small", "--resolution", 256, "--prompts", tmp_path / "prompts.txt")
    done = invoke("export", "--device", "iphone16pm", "--checkpoint", full, *chosen, "-o", tmp_path, "--no-cache", "--json")
    assert done.exit_code == 0, done.output
    gates = json.loads(done.stdout)["gates"]
    assert [g["verdict"] for g in gates] == ["passed"] * 4
