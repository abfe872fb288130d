import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from snapgen_deploy.bundle.reader import check_hashes, open_bundle
from snapgen_deploy.bundle.vectors import read_vectors
from snapgen_deploy.check.gates import Gate, psnr
from snapgen_deploy.drawing.pipeline import to_bytes
from snapgen_deploy.export.precisions import PRECISIONS
from snapgen_deploy.plan import plan
from tests.cli.conftest import in_this_process, invoke
from tests.conversions import PLACE

TARGETS = ("coreml", "executorch:xnnpack", "onnx:cpu")


def signed(path):
    return np.asarray(Image.open(path), dtype=np.float64) / 127.5 - 1


def test_every_gate_of_every_target_ran_and_passed(bundle):
    opened = open_bundle(bundle)
    check_hashes(opened)
    assert opened.targets == TARGETS
    found = {(g["target"], g["component"], g["name"]): g for g in opened.manifest["gates"]}
    assert {g["verdict"] for g in found.values()} == {"passed"}
    for target in TARGETS:
        for component in ("student", "decoder", "text_encoder"):
            assert (
                0 <= found[target, component, "relative_error"]["value"] <= found[target, component, "relative_error"]["limit"]
            )
        assert found[target, "pipeline", "psnr"]["value"] >= 40
    assert found["executorch:xnnpack", "student", "operators_outside_delegate"]["value"] == 0
    assert found["executorch:xnnpack", "decoder", "operators_outside_delegate"]["value"] == 0


def test_the_manifest_says_what_the_files_hold(bundle):
    manifest = open_bundle(bundle).manifest
    assert manifest["width"] == "small"
    assert manifest["schedule"]["sigmas"] == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert len(manifest["schedule"]["time_features"]["values"]) == 4
    assert manifest["checkpoint"]["license"] == "Apache-2.0"
    student = manifest["targets"]["coreml"]["components"]["student"]
    assert set(student["weight_dtypes"]) <= {"float16", "int32", "bool"}
    assert [p["name"] for p in student["inputs"]] == ["latent", "time_features", "text", "text_mask"]
    assert str(bundle) not in json.dumps(manifest)
    assert (bundle / "preview.png").stat().st_size > 1000


def test_one_seed_gives_one_picture_on_every_target(bundle, tmp_path):
    pictures = []
    for target in TARGETS:
        path = tmp_path / f"{target.replace(':', '-')}.png"
        done = invoke("generate", bundle, "--prompt", "a red ring", "--seed", 7, "--target", target, "-o", path)
        assert done.exit_code == 0, done.output
        pictures.append(signed(path))
    other = tmp_path / "other.png"
    assert invoke("generate", bundle, "--prompt", "a red ring", "--seed", 8, "-o", other).exit_code == 0
    assert pictures[0].shape == (64, 64, 3)
    assert psnr(pictures[1], pictures[2]) >= 55
    assert psnr(pictures[0], pictures[2]) >= 40
    assert psnr(signed(other), pictures[0]) < 40


def test_verify_runs_the_gates_again_from_the_files(bundle):
    done = invoke("verify", bundle, "--json")
    assert done.exit_code == 0, done.output
    before = {(g["target"], g["component"], g["name"]): g["verdict"] for g in open_bundle(bundle).manifest["gates"]}
    after = {(g["target"], g["component"], g["name"]): g["verdict"] for g in json.loads(done.stdout)["gates"]}
    assert after == before


def test_verify_takes_the_manifest_and_ends_with_its_count(bundle, monkeypatch):
    gates = [Gate(**g) for g in open_bundle(bundle).manifest["gates"]]
    ran = (*gates, replace(gates[0], verdict="failed"), replace(gates[0], value=None, verdict="not_run"))
    monkeypatch.setattr("snapgen_deploy.check.verify.rerun_gates", lambda *_: ran)
    done = invoke("verify", bundle / "manifest.json")
    assert done.exit_code == 1, done.output
    assert done.stdout.splitlines()[-1] == f"{len(gates)} gates passed, 1 failed, 1 not run"


def test_verify_finds_a_changed_file(bundle, tmp_path):
    copy = tmp_path / bundle.name
    shutil.copytree(bundle, copy)
    model = copy / "onnx-cpu" / "student.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    for command in (("verify", copy, "--hashes-only"), ("generate", copy, "--prompt", "red", "-o", tmp_path / "a.png")):
        done = invoke(*command)
        assert done.exit_code == 1
        assert "changed onnx-cpu/student.onnx" in done.stderr
    assert not (tmp_path / "a.png").exists()


def test_a_path_is_no_markup(bundle, tmp_path):
    copy = tmp_path / "b[red]" / bundle.name
    shutil.copytree(bundle, copy)
    done = invoke("verify", copy, "--hashes-only")
    assert (done.exit_code, "b[red]" in done.stdout) == (0, True)


def test_a_failed_gate_exits_1_and_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    strict = {"fp32": replace(PRECISIONS["fp32"], limits=replace(PRECISIONS["fp32"].limits, error=1e-30))}
    monkeypatch.setattr(plan, "PRECISIONS", strict)
    in_this_process(monkeypatch)
    done = invoke(
        "export",
        "--device",
        "server",
        "--target",
        "onnx:cpu",
        "--width",
        "tiny",
        "--checkpoint",
        checkpoint,
        "-o",
        tmp_path,
        "--threads",
        1,
    )
    assert done.exit_code == 1
    assert "gates failed, no bundle was written" in done.stderr
    assert "relative error" in done.stdout
    assert list(tmp_path.iterdir()) == []
    arguments = ("--device", "server", "--target", "onnx:cpu", "--width", "tiny", "--checkpoint", checkpoint, "-o", tmp_path)
    said = json.loads(invoke("export", *arguments, "--json").stdout)
    assert said["bundle"] is None
    assert {g["verdict"] for g in said["gates"]} == {"passed", "failed"}


def as_pipeline(folder, scratch, monkeypatch):
    """A server's folder, loaded by diffusers, which copies the code of a folder into a cache of its own."""
    from diffusers import DiffusionPipeline  # imports most of the library, seconds that only this test needs
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(scratch / "modules"))
    monkeypatch.setattr("sys.path", list(sys.path))
    pipeline = DiffusionPipeline.from_pretrained(str(folder), custom_pipeline="pipeline", trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_server_bundle_has_the_diffusers_layout_and_the_same_bytes_twice(checkpoint, tmp_path, monkeypatch):
    """One of the two converts everything itself; the other's components were converted before, by whoever came first."""
    sums = []
    arguments = ("export", "--device", "server", "--width", "tiny", "--checkpoint", checkpoint, "--threads", 1, "--no-cache")
    arguments = (*arguments, "--check-on", "arm64")
    for place in ("first", "second"):
        done = invoke(*arguments, "-o", tmp_path / place)
        assert done.exit_code == 0, done.output
        root = tmp_path / place / "tiny-test-server"
        sums.append((root / "SHA256SUMS").read_text())
        monkeypatch.delenv(PLACE, raising=False)
    assert sums[0] == sums[1]
    pipeline = as_pipeline(root / "onnx-cpu", tmp_path, monkeypatch)
    opened = open_bundle(root)
    vectors = read_vectors(opened)
    (drawn,) = pipeline(vectors.prompts[1], seed=vectors.seeds[1], output_type="np").images
    assert np.abs(drawn.astype(int) - to_bytes(vectors.arrays["picture"][1:2])).max() <= 1
    idle = [g for g in open_bundle(root).manifest["gates"] if "on" in g]
    assert {(g["on"], g["verdict"], g["name"]) for g in idle} == {
        ("arm64:cortex-a76", "not_run", name) for name in ("relative_error", "psnr", "median_psnr")
    }
    with safe_open(root / "test_vectors.safetensors", "np") as file:
        assert len(file.metadata()) == 1  # several would come in random order: other bytes every second time
    names = {line.split("  ")[1] for line in sums[0].splitlines()}
    assert {
        "onnx-cpu/model_index.json",
        "onnx-cpu/transformer/model.onnx",
        "onnx-cpu/vae_decoder/model.onnx",
        "onnx-cpu/text_encoder/model.onnx",
        "onnx-cpu/scheduler/scheduler_config.json",
    } <= names


def test_layers_are_compared_by_the_short_name_of_a_target(bundle):
    done = invoke("doctor", bundle, "--layers", "--target", "onnx", "--json")
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)["components"]) == {f"{r} (onnx:cpu)" for r in ("text_encoder", "student", "decoder")}
