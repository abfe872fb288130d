"""Golden vectors on the command line: the reference is held against them before any conversion, files afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from snapgen_deploy.bundle.reader import check_hashes, open_bundle
from snapgen_deploy.check import verify
from snapgen_deploy.checkpoint import open_checkpoint
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.golden import Recorder, open_golden
from snapgen_deploy.job import checked, convert, drawn, golden
from snapgen_deploy.report.collect import collect
from tests.cli.conftest import in_this_process, invoke
from tests.golden.golden_cases import write_changed, write_golden

ONLY = "compared with this package's own reference only"


@pytest.fixture(scope="module")
def vectors(checkpoint: Path, once) -> Path:
    name = "golden.safetensors"
    return once("cli-golden", lambda folder: write_golden(open_checkpoint(checkpoint), folder / name, "small")) / name


@pytest.fixture(scope="module")
def golden_bundle(checkpoint: Path, bundle: Path, vectors: Path, once) -> Path:
    """For ONNX alone; `bundle` has made its conversions."""
    assert bundle.is_dir()

    def export(out: Path) -> None:
        where = ("--device", "iphone16pm", "--checkpoint", checkpoint, "--target", "onnx", "-o", out, "--golden", vectors)
        with pytest.MonkeyPatch.context() as patch:
            in_this_process(patch, modules=(drawn, convert, checked, golden))
            done = invoke("export", *where, "--width", "small", "--threads", 1, "--no-cache")
        assert done.exit_code == 0, done.output
        said = "compared with golden vectors of text encoder, student, decoder, pipeline"
        assert done.stdout.splitlines()[-1] == said

    return once("golden-bundle", export) / "tiny-test-iphone16pm"


def test_files_and_reference_are_held_against_them(golden_bundle: Path, vectors: Path) -> None:
    opened = open_bundle(golden_bundle)
    check_hashes(opened)
    gates = {(g["target"], g["component"], g["name"]): g for g in opened.manifest["gates"] if g["name"].startswith("golden")}
    parts = [("text_encoder", "error"), ("student", "error"), ("decoder", "error"), ("pipeline", "psnr")]
    median = ("onnx:cpu", "pipeline", "golden_median_psnr")
    assert set(gates) == {median} | {
        (of, part, f"golden_{name}")
        for of in ("reference", "onnx:cpu")
        for part, name in (*parts, *([("text_encoder", "tokens")] if of == "reference" else []))
    }
    assert {g["verdict"] for g in gates.values()} == {"passed"}
    assert gates["onnx:cpu", "student", "golden_error"]["limit"] == pytest.approx(2e-4)
    assert 49 > gates[median]["limit"] > 47  # 60 and 50 dB add up
    assert 38 > gates["onnx:cpu", "pipeline", "golden_psnr"]["limit"] > 37  # 40 and 50 dB
    rows = {"text_encoder": 2, "student": 8, "decoder": 2, "pipeline": 2}
    assert opened.manifest["golden"] == {"file": "golden.safetensors", "computed_in": "fp32", "rows": rows}
    assert (golden_bundle / "golden.safetensors").read_bytes() == vectors.read_bytes()
    (view,) = collect([golden_bundle]).bundles
    assert view.compared_with == opened.manifest["compared_with"]


def test_verify_runs_them_again(
    golden_bundle: Path, checkpoint: Path, vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch, modules=(verify,))
    done = invoke("verify", golden_bundle, "--json")
    assert done.exit_code == 0, done.output
    found = {(g["target"], g["component"], g["name"]): g for g in json.loads(done.stdout)["gates"]}
    assert found["onnx:cpu", "decoder", "golden_error"]["verdict"] == "passed"
    assert found["reference", "decoder", "golden_error"]["verdict"] == "not_run"
    assert "at export: passed" in found["reference", "decoder", "golden_error"]["detail"]
    with safe_open(vectors, "np") as file:  # the same of coarser arithmetic: other limits than those that are recorded
        about = file.metadata() | {"computed_in": "bf16"}
        save_file({name: file.get_tensor(name) for name in file.keys()}, tmp_path / "coarse.safetensors", about)  # noqa: SIM118
    done = invoke("verify", golden_bundle, "--golden", tmp_path / "coarse.safetensors")
    assert done.exit_code == 0, done.output
    other = write_changed(open_checkpoint(checkpoint), vectors, tmp_path / "g.safetensors", "decoder", ["activation: ReLU"])
    done = invoke("verify", golden_bundle, "--golden", other, "--json")
    assert done.exit_code == 1, done.output
    (failed,) = [g for g in json.loads(done.stdout)["gates"] if g["verdict"] == "failed"]
    assert (failed["target"], failed["component"], failed["name"]) == ("onnx:cpu", "decoder", "golden_error")


def test_without_them_the_bundle_says_so(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert manifest["compared_with"] == ONLY
    assert "golden" not in manifest
    (view,) = collect([bundle]).bundles
    assert view.compared_with == ONLY


def test_another_network_is_refused_before_anything_is_converted(
    checkpoint: Path, vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLIP's arithmetic under our names: every name and shape fits."""
    names: list[str] = []
    in_this_process(monkeypatch, names, (drawn, convert, checked, golden))
    variants = ["mask: causal", "activation: quick_gelu"]
    clip = write_changed(open_checkpoint(checkpoint), vectors, tmp_path / "clip.safetensors", "text_encoder", variants)
    where = ("--device", "iphone16pm", "--checkpoint", checkpoint, "-o", tmp_path / "out", "--width", "small")
    done = invoke("export", *where, "--golden", clip)
    assert done.exit_code == 1
    said = " ".join(done.output.split())
    assert "1 of 1 golden gates of the reference failed, nothing was converted: text_encoder golden_error" in said
    assert "mask: causal mask (here every token sees all); activation: quick_gelu (here tanh GELU)" in said
    assert names == ["golden vectors"]
    assert list((tmp_path / "out").glob("*")) == []
    seen = invoke("inspect", checkpoint, "--golden", clip, "--json")
    assert seen.exit_code == 1
    found = json.loads(seen.stdout)["golden"]["found"]["text_encoder"]
    assert found["agrees"]
    assert [c["kind"] for c in found["changes"]] == ["mask", "activation"]
    assert "mask: causal mask" in " ".join(invoke("inspect", checkpoint, "--golden", clip).stdout.split())


def test_inspect_finds_the_width_that_vectors_are_of(checkpoint: Path, vectors: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(checkpoint)
    calls = open_golden(vectors, opened.config, tokenizers=opened.tokenizers).cases["student"]
    recorder = Recorder()
    arrays = {name: torch.from_numpy(value[:1]) for name, value in calls.inputs.items()}
    recorder.add("student", **arrays, velocity=torch.from_numpy(calls.outputs["velocity"][:1]))
    recorder.save(tmp_path / "g.safetensors")
    done = invoke("inspect", checkpoint, "--golden", tmp_path / "g.safetensors", "--json")
    assert done.exit_code == 1, done.output
    said = json.loads(done.stdout)["golden"]
    assert said["width"] == "full"
    assert said["causes"]["student"] == "the vectors are of width small, not full; pass --width small"
    assert invoke("inspect", checkpoint, "--golden", tmp_path / "g.safetensors", "--width", "small").exit_code == 0


@pytest.mark.parametrize(("cause", "said"), [("range", "pixel range: [0, 1] in the file"), ("shift", "set shift to 1")])
def test_causes_of_whole_pictures(checkpoint: Path, vectors: Path, tmp_path: Path, cause: str, said: str) -> None:
    from dataclasses import replace

    from snapgen_deploy.drawing.pipeline import Pipeline
    from snapgen_deploy.drawing.reference import reference_runners
    from snapgen_deploy.models import Schedule, sigmas

    opened = open_checkpoint(checkpoint)
    whole = open_golden(vectors, opened.config, tokenizers=opened.tokenizers).picture
    assert whole is not None
    assert whole.picture is not None
    recorder, picture = Recorder("small"), (whole.picture[:1] + 1) / 2
    if cause == "shift":
        schedule = Schedule(sigmas(4, 1.0), 1.0, 16)
        pipeline = Pipeline(components_of(opened.config), reference_runners(opened, "small"), schedule, (4, 8, 8))
        tokens = {role: {n: v[:1] for n, v in given.items()} for role, given in replace(whole).tokens.items()}
        picture = pipeline.decode(pipeline.denoise(whole.noise[:1], pipeline.encode(tokens)))
    recorder.picture(opened.config.prompts[0], noise=whole.noise[:1], picture=picture)
    recorder.save(tmp_path / "g.safetensors")
    done = invoke("inspect", checkpoint, "--golden", tmp_path / "g.safetensors")
    assert done.exit_code == 1, done.output
    assert said in " ".join(done.output.split())


def test_bad_vectors_are_one_line(checkpoint: Path, vectors: Path, tmp_path: Path) -> None:
    where = ("--device", "iphone16pm", "--checkpoint", checkpoint, "-o", tmp_path, "--dry-run")
    refused = invoke("export", *where, "--golden", vectors)
    assert refused.exit_code == 2
    assert "golden vectors are of width small, the plan exports full; pass --width small" in " ".join(refused.output.split())
    shutil.copy(checkpoint, tmp_path / "other.safetensors")
    refused = invoke("export", *where, "--golden", tmp_path / "other.safetensors")
    assert refused.exit_code == 2
    assert invoke("inspect", checkpoint, "--width", "small").exit_code == 2
    refused = invoke("inspect", checkpoint, "--golden", vectors, "--width", "wide")
    assert "--width: got 'wide', the checkpoint holds tiny, small, full" in " ".join(refused.output.split())
