"""A server's bundle whose calls draw several pictures, with guidance, of the toy student of `test_guidance`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from snapgen_deploy.bundle.draw import WantedPicture, draw
from snapgen_deploy.bundle.reader import Bundle, open_bundle, write_manifest
from snapgen_deploy.bundle.vectors import port_values
from snapgen_deploy.check import verify
from snapgen_deploy.check.fidelity import draw_reference, measure_fidelity
from snapgen_deploy.check.gates import SavedTarget, psnr
from snapgen_deploy.checkpoint import CheckpointPlace, open_checkpoint
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.drawing.pipeline import Pipeline, in_calls
from snapgen_deploy.drawing.prompts import Sample
from snapgen_deploy.drawing.reference import make_vectors, reference_runners, schedule_of
from snapgen_deploy.errors import BadInput, Refused
from snapgen_deploy.export.onnx import optimum_layout
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.families.registry import FAMILIES, components_of
from snapgen_deploy.job import checked, convert, drawn
from snapgen_deploy.job.cache import export_key
from snapgen_deploy.job.calibration import Calibration
from snapgen_deploy.job.memory import predict
from snapgen_deploy.latency.compare.compare import refuse_unlike_pictures
from snapgen_deploy.latency.estimate.estimate import plan_estimator
from snapgen_deploy.latency.measure.session import bundle_identity, open_session
from snapgen_deploy.models import PRESETS
from snapgen_deploy.plan.make import make_plan
from snapgen_deploy.plan.plan import target_at
from snapgen_deploy.quantise.trajectories import Recording
from tests.cli.conftest import Once, in_this_process, invoke
from tests.families.test_guidance import LATENT, guided, own_text, write
from tests.families.toy import ToyFamily

BATCH = 3
PROMPTS = ["a red ring", "a blue ring", "a red square", "gray"]


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "toy", ToyFamily())
    in_this_process(monkeypatch, modules=(drawn, convert, checked, verify))


@pytest.fixture
def checkpoint(once: Once) -> Path:
    return once("guided toy", lambda folder: write(folder / "guided.safetensors", guided())) / "guided.safetensors"


@pytest.fixture
def bundle(checkpoint: Path, once: Once) -> Bundle:
    def export(folder: Path) -> None:
        (folder / "prompts.txt").write_text("\n".join(PROMPTS))
        where = ("--device", "iphone16pm", "--checkpoint", checkpoint, "-o", folder, "--no-cache", "--threads", 1)
        done = invoke("export", *where, "--target", "onnx", "--batch", BATCH, "--prompts", folder / "prompts.txt")
        assert done.exit_code == 0, done.output

    return open_bundle(once("guided toy bundle of batches", export) / "guided-iphone16pm")


def test_all_rows_are_held_to_the_reference(bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    assert bundle.batch == bundle.manifest["batch"] == BATCH
    parts = bundle.manifest["targets"]["onnx:cpu"]["components"]
    rows = {role: parts[role]["inputs"][0]["shape"][0] for role in parts}
    assert rows == {"text_encoder": 1, "text_encoder_2": 1, "student": 2 * BATCH, "decoder": BATCH}
    assert "rows 0 to 2 for the prompts, rows 3 to 5 for the negative prompts" in parts["student"]["doc"]
    assert "a row for each of 3 pictures" in parts["decoder"]["doc"]
    gates = {(g["component"], g["name"]): g["verdict"] for g in bundle.manifest["gates"]}
    assert gates["student", "relative_error"] == gates["decoder", "relative_error"] == gates["pipeline", "psnr"] == "passed"
    assert "batch of 3: a call draws 3 pictures" in bundle.manifest["reasons"]
    assert invoke("verify", bundle.path).exit_code == 0
    values = port_values(bundle)
    assert np.array_equal(values["student"]["latent"][:BATCH], values["student"]["latent"][BATCH:])
    assert len(np.unique(values["decoder"]["latent"], axis=0)) == BATCH
    done = invoke("verify", write_manifest_without_batch(bundle, tmp_path))
    assert done.exit_code == 1
    assert "contradicts itself" in done.stderr


def write_manifest_without_batch(bundle: Bundle, folder: Path) -> Path:
    copy = Path(shutil.copytree(bundle.path, folder / "copy"))
    write_manifest(copy, {name: value for name, value in bundle.manifest.items() if name != "batch"})
    return copy


def test_each_row_of_a_file_is_what_a_file_of_one_gives(bundle: Bundle, checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    one, target = reference_runners(opened, "only"), target_of("onnx:cpu")[0]
    for role, artifact in bundle.artifacts("onnx:cpu").items():
        spec, run = components_of(opened.config)[role], target.open(artifact.path, threads=1)
        inputs = port_values(bundle)[role]
        if spec.part != "encode":
            inputs = {name: np.random.default_rng(0).standard_normal(v.shape, np.float32) for name, v in inputs.items()}
        got = run(inputs)[spec.output]
        assert len(got) == spec.rows_in(BATCH)
        for row in range(len(got)):
            expected = one[role]({name: value[row : row + 1] for name, value in inputs.items()})[spec.output]
            np.testing.assert_allclose(got[row], expected[0], rtol=1e-4, atol=1e-5)


def test_pictures_come_in_calls_and_the_last_is_filled_up(bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    own = own_text(1)
    wanted = [WantedPicture(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    together = draw(bundle, "onnx:cpu", wanted, 1, own)
    for i, one in enumerate(wanted):
        (alone,) = draw(bundle, "onnx:cpu", [one], 1, own)
        assert psnr(alone[None] / 127.5 - 1, together[i][None] / 127.5 - 1) >= 60
    np.savez(tmp_path / "own.npz", **own)
    prompts = [argument for prompt in PROMPTS for argument in ("--prompt", prompt)]
    where = ("--embeddings", tmp_path / "own.npz", "--threads", 1, "-o", tmp_path / "x.png")
    done = invoke("generate", bundle.path, *prompts, "--seed", 5, *where)
    assert done.exit_code == 0, done.output
    assert [path.name for path in sorted(tmp_path.glob("*.png"))] == [f"x-{i}.png" for i in range(1, 5)]
    assert "a call draws 3 pictures: 2 of the last call were filled up and dropped" in " ".join(done.output.split())
    told = json.loads(invoke("generate", bundle.path, "--prompt", "gray", "--seed", 1, "--seed", 2, *where, "--json").stdout)
    assert [(p["prompt"], p["seed"]) for p in told["pictures"]] == [("gray", 1), ("gray", 2)]
    for arguments in ((*prompts, "--seed", 1, "--seed", 2), (*prompts[:4], *("--seed", 1) * 3)):
        refused = invoke("generate", bundle.path, *arguments, "-o", tmp_path / "none.png")
        assert refused.exit_code == 2
        assert "expected one seed for all prompts, or one for each" in " ".join(refused.stderr.split())
    assert not (tmp_path / "none.png").exists()


def test_timings_are_those_of_a_call(bundle: Bundle) -> None:
    session = open_session(bundle, "onnx:cpu", 1)
    assert session.noise.shape == (BATCH, *LATENT)
    times = {name: len(values) for name, values in session.query().items()}
    assert times == {"e2e": 1, "text_encoder": BATCH, "text_encoder_2": BATCH, "student": 4, "decoder": 1}
    assert bundle_identity(bundle)["batch"] == BATCH
    alone = {name: value for name, value in bundle.manifest.items() if name != "batch"}
    with pytest.raises(Refused, match="a call of base draws 3 pictures, of candidate 1; export both alike"):
        refuse_unlike_pictures(bundle.manifest, alone)


def test_fidelity_and_calibration_go_through_calls(bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    samples = tuple(Sample(prompt, seed) for seed, prompt in enumerate(PROMPTS))
    recording = Recording(CheckpointPlace(checkpoint), "only", LATENT, samples, tmp_path / "drawn", 1)
    draw_reference(recording, None)
    opened, key = open_checkpoint(checkpoint), "onnx:cpu"
    saved = SavedTarget(
        key, "fp32", bundle.limits(key), bundle.artifacts(key), opened.config, bundle.schedule, threads=1, batch=BATCH
    )
    measured = measure_fidelity(saved, tmp_path / "drawn", None)
    assert measured.pictures == len(PROMPTS)
    assert measured.psnr >= 80
    calls = list(Calibration(samples).inputs(opened, tmp_path / "drawn", "student", BATCH))
    assert len(calls) == -(-len(PROMPTS) * 4 // BATCH)
    one = list(Calibration(samples).inputs(opened, tmp_path / "drawn", "student"))
    for name, value in calls[-1].items():  # the last call begins with the last picture's last step, and is filled up
        picked = in_calls(len(one), BATCH)[-1]
        assert np.array_equal(value, np.concatenate([one[i][name][row : row + 1] for row in range(2) for i in picked]))
    text = list(Calibration(samples).inputs(opened, tmp_path / "drawn", "text_encoder", BATCH))
    assert len(text) == len(PROMPTS)
    assert all(len(call["tokens"]) == 1 for call in text)


def test_a_plan_counts_the_rows_of_a_call(checkpoint: Path) -> None:
    config, profile = PRESETS["shapes"](), load_profile("server")
    plans = {n: make_plan(config, profile, targets=["onnx"], width="small", batch=n) for n in (1, 4)}
    assert (plans[1].batch, plans[4].batch) == (1, 4)
    assert not any("batch" in reason for reason in plans[1].reasons)
    spec = components_of(config).denoiser
    (one, four) = (spec.activation_bytes("small", plans[4].latent, plans[4].resolution, n) for n in (1, 4))
    assert four == 4 * one
    assert plans[4].memory_bytes > plans[1].memory_bytes
    checks = {n: next(p.bytes for p in predict(config, plan) if p.what.endswith("check")) for n, plan in plans.items()}
    assert checks[4] > checks[1]
    drawing = {n: next(p.bytes for p in predict(config, plan) if p.what == "reference") for n, plan in plans.items()}
    assert drawing[4] == drawing[1]  # picture after picture
    opened = open_checkpoint(None)
    keys = {export_key(opened, plan, target_at(plan, "onnx:cpu"), "student") for plan in plans.values()}
    assert len(keys) == 2
    estimators = [plan_estimator(config, load_profile("android-mid"), None, n) for n in (1, 4)]
    times = [found for of in estimators if (found := of("small", "onnx:cpu", "fp32")) is not None]
    assert [e.batch for e in times] in ([], [1, 4])
    if times:
        assert times[1].ms > 2 * times[0].ms
        assert "for 4 pictures" in times[1].line
    index = json.loads(optimum_layout.texts(config, [], {}, None, batch=4)["model_index.json"])
    assert index["snapgen"]["batch"] == 4


def test_only_targets_that_take_it_are_given_a_batch(tmp_path: Path) -> None:
    where = ("--device", "iphone16pm", "-o", tmp_path, "--dry-run")
    left = invoke("export", *where, "--batch", 2)
    assert left.exit_code == 0, left.output
    said = " ".join(left.output.split())
    assert "coreml left out: it takes no --batch 2 (files for a device draw one picture in a call)" in said
    assert "batch of 2: a call draws 2 pictures" in said
    for arguments, message in (
        (("--batch", 0), "--batch"),
        (("--batch", 100_000), "--batch"),
        (("--batch", 2, "--target", "coreml"), "target coreml cannot be exported: it takes no --batch 2"),
    ):
        done = invoke("export", *where, *arguments)
        assert done.exit_code == 2
        assert message in " ".join(done.stderr.split())
    profile = load_profile("iphone16pm")
    phones = replace(profile, targets=tuple(t for t in profile.targets if t.target == "coreml"))
    with pytest.raises(BadInput, match=r"--batch 2: no target of iphone16pm takes it \(coreml: .*\); choose one with --target"):
        make_plan(PRESETS["shapes"](), phones, batch=2)
    assert list(tmp_path.iterdir()) == []


def test_the_reference_draws_one_by_one(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    plan = make_plan(opened.config, load_profile("iphone16pm"), targets=["onnx"], batch=BATCH)
    vectors = make_vectors(opened, plan, PROMPTS[:2])
    spec = components_of(opened.config).denoiser
    inputs, expected = next(vectors.cases(spec, opened.config, [0, 1, 0]))
    assert inputs["text"].shape[0] == expected[spec.output].shape[0] == 2 * BATCH
    pipeline = Pipeline(components_of(opened.config), reference_runners(opened, "only"), schedule_of(opened.config), LATENT)
    text = pipeline.condition(*vectors.conditions([1, 0], opened.config))
    latents = pipeline.denoise(vectors.arrays["noise"][[1, 0]], text)
    np.testing.assert_allclose(latents, vectors.arrays["latent"][[1, 0]], rtol=1e-4, atol=1e-5)
