"""Classifier-free guidance: a call of the student has a row for the prompt and one for the negative prompt.

The student is the toy one. It has four text streams: two have text encoders, one stays empty, and one is for the app to fill.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from snapgen_deploy.bundle.draw import Guidance, WantedPicture, draw
from snapgen_deploy.bundle.reader import CONFORMANCE, Bundle, open_bundle
from snapgen_deploy.bundle.vectors import port_values, read_vectors
from snapgen_deploy.check import verify
from snapgen_deploy.check.facts import refuse_contradictions
from snapgen_deploy.check.gates import failed, psnr
from snapgen_deploy.check.golden import GoldenTask, hold_reference
from snapgen_deploy.checkpoint import CheckpointPlace, checkpoint_state, open_checkpoint, save_checkpoint
from snapgen_deploy.checkpoint.networks import load_component
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.drawing.pipeline import Condition, Pipeline, noise_for, stacked_rows, tokenize_all
from snapgen_deploy.drawing.prompts import Sample
from snapgen_deploy.drawing.reference import encoded_conditions, reference_runners, schedule_of
from snapgen_deploy.errors import BadInput, GateFailed
from snapgen_deploy.export.base import Arrays
from snapgen_deploy.export.onnx import optimum_layout
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.families.registry import FAMILIES, components_of, student_types
from snapgen_deploy.golden import Recorder, open_golden
from snapgen_deploy.job import checked, convert, drawn
from snapgen_deploy.job.components import build_component
from snapgen_deploy.latency.measure.session import open_session
from snapgen_deploy.models import ModelConfig, TextEncoder, TextEncoderConfig, TextStream, TinyDecoder
from snapgen_deploy.models.serialise import config_from_dict, config_to_dict
from snapgen_deploy.models.tokenizer import WordTokenizer
from snapgen_deploy.plan.make import make_plan
from snapgen_deploy.quantise.sensitivity import velocities_of
from snapgen_deploy.quantise.trajectories import record
from tests.cli.conftest import WORDS, Once, in_this_process, invoke
from tests.families.test_toy import CONFIG, STUDENT, WholeToy
from tests.families.toy import Toy, ToyFamily

SCALE = 3.0
RING = WantedPicture("a red ring", 3)
STREAMS = (*STUDENT.text_streams, TextStream("llm", 24, 6), TextStream("gone", 5, 3), TextStream("own", 7, 4))
LATENT = (4, 8, 8)


def guided() -> ModelConfig:
    assert CONFIG.text_encoder is not None
    second = TextEncoderConfig(len(WORDS) + 4, length=6, width=24, layers=1, heads=3, stream="llm")
    student = replace(STUDENT, text_streams=STREAMS)
    return replace(
        CONFIG,
        student=student,
        other_text_encoders=(second,),
        absent_streams=("gone",),
        name="guided",
        guidance_scale=SCALE,
        negative_prompt="gray square",
    )


def write(path: Path, config: ModelConfig) -> Path:
    torch.manual_seed(0)
    assert config.decoder is not None
    toy = Toy(config.student)  # type: ignore[arg-type]
    for layer in toy.text.values():
        torch.nn.init.normal_(layer.weight, std=0.5)  # the prompt shows
    first, second = (TextEncoder(encoder) for encoder in config.text_encoders)  # type: ignore[arg-type]
    state = checkpoint_state(WholeToy(toy), TinyDecoder(config.decoder), first, [second])  # type: ignore[arg-type]
    words = [WordTokenizer.from_words(w).to_json() for w in (WORDS, WORDS[::-1])]
    save_checkpoint(state, config, path, tokenizer=words[0], other_tokenizers=words[1:], license="MIT")
    return path


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
        where = ("--device", "iphone16pm", "--checkpoint", checkpoint, "-o", folder, "--no-cache")
        done = invoke("export", *where, "--target", "onnx", "--threads", 1)
        assert done.exit_code == 0, done.output

    return open_bundle(once("guided toy bundle", export) / "guided-iphone16pm")


def own_text(seed: int) -> Arrays:
    own = np.random.default_rng(seed).standard_normal((1, 4, 7), np.float32)
    return {"own": own, "own_mask": np.ones((1, 4), np.float32)}


def by_hand(path: Path, text: Arrays, negative: Arrays, seed: int, scale: float) -> np.ndarray:
    """The picture by the formula: the reference network called twice per step, one row each."""
    opened = open_checkpoint(path)
    config, spec = opened.config, components_of(opened.config).denoiser
    network, levels, schedule = load_component(opened, "student", "only"), schedule_of(config).sigmas, schedule_of(config)

    def velocity(x: torch.Tensor, step: int, of: Arrays) -> torch.Tensor:
        inputs = {"latent": x.numpy(), "time_features": schedule.features(step), **of}
        with torch.inference_mode():
            return spec.run(network, {name: torch.from_numpy(value) for name, value in inputs.items()})[spec.output]

    x = torch.from_numpy(noise_for(seed, LATENT))
    for step in range(len(levels) - 1):
        away, towards = velocity(x, step, negative), velocity(x, step, text)
        x = x + (levels[step + 1] - levels[step]) * (away + scale * (towards - away))
    runners = reference_runners(opened, "only", ("decode",))
    return runners["decoder"]({"latent": x.numpy()})["picture"]


def reference(path: Path) -> Pipeline:
    opened = open_checkpoint(path)
    return Pipeline(components_of(opened.config), reference_runners(opened, "only"), schedule_of(opened.config), LATENT)


def test_the_reference_follows_the_formula(checkpoint: Path) -> None:
    opened, pipeline = open_checkpoint(checkpoint), reference(checkpoint)
    prompt, negative = encoded_conditions(opened, pipeline, "a red ring", 5)
    assert set(prompt.tokens) == set(negative.tokens) == {"text_encoder", "text_encoder_2"}
    for name in ("own", "own_mask", "gone", "gone_mask"):
        assert not negative.text[name].any()
    assert prompt.text["own"].any()
    assert not prompt.text["gone"].any()
    text = stacked_rows([prompt.text, negative.text])
    assert text["llm"].shape == (2, 6, 24)
    for scale in (None, 0.0, 1.0, 7.5):
        expected = by_hand(checkpoint, prompt.text, negative.text, 5, SCALE if scale is None else scale)
        got = replace(pipeline, guidance=scale)
        np.testing.assert_allclose(got.decode(got.denoise(noise_for(5, LATENT), text)), expected, rtol=1e-4, atol=1e-5)


def test_a_bundle_of_a_guided_student_is_held_to_the_reference(bundle: Bundle) -> None:
    said = bundle.manifest["guidance"]
    assert (said["scale"], said["negative_prompt"], said["rows"]) == (SCALE, "gray square", ["prompt", "negative prompt"])
    assert "negative + scale * (prompt - negative)" in said["formula"]
    assert "negative + scale" in bundle.manifest["schedule"]["note"]
    parts = bundle.manifest["targets"]["onnx:cpu"]["components"]
    assert all(p["shape"][0] == 2 for p in (*parts["student"]["inputs"], *parts["student"]["outputs"]))
    assert all(p["shape"][0] == 1 for role in ("text_encoder", "text_encoder_2", "decoder") for p in parts[role]["inputs"])
    assert "row 0 for the prompt, row 1 for the negative prompt" in parts["student"]["doc"]
    arrays, values = read_vectors(bundle).arrays, port_values(bundle)["student"]
    assert said["inputs"]["text_encoder_2"]["tokens"] == arrays["negative.text_encoder_2.tokens"][0].tolist()
    assert np.array_equal(values["llm"], np.stack([arrays["student.llm"][0], arrays["student.negative.llm"][0]]))
    assert np.array_equal(values["latent"][0], values["latent"][1])
    assert arrays["student.velocities"].shape == (1, 4, 2, *LATENT)
    assert any("2 rows" in reason for reason in bundle.manifest["reasons"])
    index = json.loads(optimum_layout.texts(guided(), [], {}, None)["model_index.json"])
    assert (index["snapgen"]["guidance_scale"], index["snapgen"]["negative_prompt"]) == (SCALE, "gray square")
    assert invoke("verify", bundle.path).exit_code == 0
    times = open_session(bundle, "onnx:cpu", 1).query()
    assert {name: len(values) for name, values in times.items() if "encoder" in name} == {
        "text_encoder": 1,
        "text_encoder_2": 1,
    }  # an app encodes the negative prompt once
    wrong = {**bundle.manifest, "guidance": {**said, "scale": 4.0}}
    with pytest.raises(GateFailed, match="guidance is not that of the configuration"):
        refuse_contradictions(Bundle(bundle.path, wrong), read_vectors(bundle))


def test_conformance_names_the_rows_of_every_call(bundle: Bundle) -> None:
    cases = json.loads((bundle.path / CONFORMANCE).read_text(encoding="utf-8"))
    vectors, components = read_vectors(bundle), components_of(bundle.config)
    values = bundle.manifest["schedule"]["time_features"]["values"]

    def rows(told: list[dict]) -> np.ndarray:
        return np.stack([vectors.arrays[r["array"]][tuple(r["index"])] if "array" in r else values[r["step"]] for r in told])

    assert [call["component"] for call in cases["calls"]] == list(components.names)
    for call in cases["calls"]:
        inputs, expected = next(vectors.cases(components[call["component"]], bundle.config, [0]))
        assert call["inputs"].keys() == inputs.keys()
        for name, array in inputs.items():
            np.testing.assert_allclose(rows(call["inputs"][name]), array, rtol=1e-6)
        assert call["outputs"].keys() == expected.keys()
        assert all(np.array_equal(rows(told), expected[name]) for name, told in call["outputs"].items())
        assert call["error"] == {"onnx:cpu": 1e-4}
    first, second = cases["tokenizers"]
    assert (first["file"], second["file"], second["stream"]) == ("tokenizer.json", "tokenizer_2.json", "llm")
    assert "gray square" in [case["text"] for case in second["cases"]]
    picture = cases["picture"]
    assert picture["text"].keys() == {"own", "own_mask"}  # `gone` is empty, encoders make the others
    assert rows(picture["text"]["own"]).shape == (2, 4, 7)


def test_pictures_of_a_bundle_take_scale_and_negative_prompt(bundle: Bundle, checkpoint: Path) -> None:
    pipeline, own = reference(checkpoint), own_text(1)
    tokenizers = open_checkpoint(checkpoint).tokenizers

    def encoded(prompt: str, text: Arrays) -> Arrays:
        gone = {"gone": np.zeros((1, 3, 5), np.float32), "gone_mask": np.zeros((1, 3), np.float32)}
        return pipeline.condition(Condition(tokenize_all(pipeline.components, tokenizers, prompt), text | gone))

    empty = {name: np.zeros_like(value) for name, value in own.items()}
    away = {f"negative.{name}": value for name, value in own_text(2).items()}
    for guidance, embeddings, negative, scale in (
        (Guidance(), own, encoded("gray square", empty), SCALE),
        (Guidance(1.5, "blue"), own, encoded("blue", empty), 1.5),
        (Guidance(1.0), own, encoded("gray square", empty), 1.0),
        (Guidance(negative_prompt=""), own | away, encoded("", own_text(2)), SCALE),
    ):
        expected = by_hand(checkpoint, encoded("a red ring", own), negative, 3, scale)
        (picture,) = draw(bundle, "onnx:cpu", [RING], 1, embeddings, guidance=guidance)
        assert psnr(picture.transpose(2, 0, 1)[None] / 127.5 - 1, expected) >= 45
    for guidance, message in (
        (Guidance(float("nan")), r"--guidance: got nan, expected a number of 0 or more"),
        (Guidance(float("inf")), r"--guidance: got inf"),
        (Guidance(-0.5), r"--guidance: got -0\.5"),
        (Guidance(2.0, "a zebra"), r"negative prompt: .*'zebra'"),
        (Guidance(None, "a red ring on gray left of blue"), r"negative prompt: .* tokens"),
    ):
        with pytest.raises(BadInput, match=message):
            draw(bundle, "onnx:cpu", [RING], 1, own, guidance=guidance)


def test_a_bundle_without_guidance_refuses_it(bundle: Bundle) -> None:
    plain = {**bundle.manifest, "config": config_to_dict(replace(guided(), guidance_scale=1.0, negative_prompt=""))}
    for guidance, name in ((Guidance(2.0), "--guidance"), (Guidance(None, "blue"), "--negative-prompt")):
        with pytest.raises(BadInput, match=f"{name}: .* has no guidance, its student takes the prompt alone"):
            draw(Bundle(bundle.path, plain), "onnx:cpu", [RING], 1, own_text(1), guidance=guidance)


@pytest.mark.parametrize("key", ["coreml", "executorch:xnnpack"])
def test_the_rows_of_a_file_are_what_the_network_gives_one_by_one(key: str, checkpoint: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(checkpoint)
    plan = make_plan(opened.config, load_profile("iphone16pm"), targets=[key])
    component = build_component(opened, plan, plan.targets[0], "student")
    target, variant = target_of(key)
    artifact = target.export(component, variant, plan.targets[0].precision, tmp_path, dict(plan.targets[0].options))
    assert all(port.shape[0] == 2 for port in (*component.inputs, *component.outputs))
    rng = np.random.default_rng(0)
    inputs = {p.name: rng.standard_normal(p.shape, np.float32) for p in component.inputs}
    got = target.open(artifact.path, threads=1)(inputs)["velocity"]
    one = reference_runners(opened, "only", ("denoise",))["student"]
    for row in range(2):
        expected = one({name: value[row : row + 1] for name, value in inputs.items()})["velocity"]
        assert np.abs(got[row] - expected[0]).max() <= (5e-3 if key == "coreml" else 1e-5) * np.abs(expected).max()


def test_golden_pictures_go_through_guidance(checkpoint: Path, bundle: Bundle, tmp_path: Path) -> None:
    opened, pipeline = open_checkpoint(checkpoint), reference(checkpoint)
    prompt, negative = encoded_conditions(opened, pipeline, "a red ring", 5)
    features = pipeline.schedule.features(0)

    def write_golden(scale: float) -> Path:
        recorder = Recorder("only")
        picture = by_hand(checkpoint, prompt.text, negative.text, 5, scale)
        own = {name: prompt.text[name] for name in ("own", "own_mask")}
        recorder.picture("a red ring", noise=noise_for(5, LATENT), picture=picture, **own)
        text = stacked_rows([prompt.text, negative.text])  # a team's code calls its network on both rows, too
        inputs = {"latent": np.repeat(noise_for(5, LATENT), 2, 0), "time_features": np.repeat(features, 2, 0), **text}
        recorder.add("student", **inputs, **reference_runners(opened, "only", ("denoise",))["student"](inputs))
        recorder.save(tmp_path / f"{scale}.safetensors")
        return tmp_path / f"{scale}.safetensors"

    def held(path: Path) -> tuple[int, Mapping[str, str]]:
        golden = open_golden(path, opened.config, tokenizers=opened.tokenizers)
        found = hold_reference(GoldenTask(CheckpointPlace(checkpoint), "only", golden, 1, 0.0))
        return len(failed(found.gates)), found.causes

    assert held(write_golden(SCALE)) == (0, {})
    assert invoke("verify", bundle.path, "--golden", tmp_path / f"{SCALE}.safetensors").exit_code == 0
    count, causes = held(write_golden(5.0))
    assert count == 1
    assert causes["pipeline"] == "it agrees with guidance scale: 5 (here 3); set guidance_scale to 5"


def test_recorded_calls_have_both_rows(checkpoint: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(checkpoint)
    found = record(opened, "only", LATENT, [Sample("a red ring", 7), Sample("blue", 8)], tmp_path / "recorded")
    assert found.student(1, 2)["latent"].shape == found.velocity(1, 2).shape == (2, *LATENT)
    network = load_component(opened, "student", "only")
    with torch.no_grad():
        velocities = velocities_of(network, found, [(0, 1), (1, 2)])  # type: ignore[arg-type]
    np.testing.assert_allclose(velocities[2:].numpy(), found.velocity(1, 2), rtol=1e-4, atol=1e-5)
    prompt, negative = found.conditions([1])
    assert negative.tokens["text_encoder_2"]["tokens"].shape == (1, 6)
    assert not np.array_equal(prompt.text["text"], negative.text["text"])


def test_the_configuration_says_so(checkpoint: Path, tmp_path: Path) -> None:
    data = config_to_dict(guided())
    assert config_from_dict(json.loads(json.dumps(data)), student_types()) == guided()
    assert not {"guidance_scale", "negative_prompt"} & set(config_to_dict(CONFIG))
    for changes, message in (
        ({"guidance_scale": float("nan")}, "guidance_scale: got nan, expected a number of 0 or more"),
        ({"guidance_scale": float("inf")}, "guidance_scale: got inf"),
        ({"guidance_scale": -1.0}, "guidance_scale: got -1.0"),
        ({"guidance_scale": "3"}, "guidance_scale: got '3'"),
        ({"guidance_scale": 1.0}, "negative_prompt: got a text, expected none where guidance_scale is 1"),
        ({"negative_prompt": 3}, "negative_prompt: got 3, expected a text"),
        ({"negative_prompt": "\ud800"}, "negative_prompt: got"),
    ):
        with pytest.raises(BadInput, match=message):
            config_from_dict(data | changes, student_types())
    for words, message in (("a zebra", "'zebra'"), ("a red " * 9, "tokens")):
        path = write(tmp_path / "bad.safetensors", replace(guided(), negative_prompt=words))
        done = invoke("export", "--device", "server", "--checkpoint", path, "-o", tmp_path / "out", "--target", "onnx")
        assert done.exit_code == 2
        said = " ".join(done.stderr.split())
        assert said.startswith("error: negative_prompt: ")
        assert message in said
        assert not (tmp_path / "out").exists()
