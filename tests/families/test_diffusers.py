"""Students of diffusers as a family: opened from the library's folders, held to the library, drawn as its schedulers draw."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from snapgen_deploy.check.causes import golden_error
from snapgen_deploy.check.gates import golden_psnr
from snapgen_deploy.checkpoint import Checkpoint, CheckpointPlace, validate
from snapgen_deploy.checkpoint.networks import load_component, load_student
from snapgen_deploy.checkpoint.student_folder import is_library_student
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.drawing.pipeline import Pipeline, noise_for
from snapgen_deploy.drawing.reference import random_text, reference_runners, schedule_of
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.registry import components_of, family_of
from snapgen_deploy.golden.own import OwnVectorsTask, held_to_libraries, write_own_vectors
from snapgen_deploy.golden.vectors import GoldenSize, open_golden
from snapgen_deploy.latency.estimate.cost_components import picture_costs
from snapgen_deploy.models import library_student as library_module
from snapgen_deploy.models.config import LibraryTextEncoder
from snapgen_deploy.models.library_scheduler import draw_by_library
from snapgen_deploy.models.library_student import StudentText, library_output, load_library_student
from snapgen_deploy.models.noise import TORCH
from snapgen_deploy.models.serialise import config_from_json, config_to_json
from snapgen_deploy.models.students import library_student_of
from snapgen_deploy.plan.make import make_plan
from snapgen_deploy.quantise.settings import with_mixed
from snapgen_deploy.system.documents import parse_json
from tests import library_students as cases
from tests.text_encoders.folders import MODELS, write_folder

SAID = '{"prompts": ["a ring"], "student": {"text_streams": [{"name": "text", "dim": 20, "length": 6}]}}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("pipeline")
    cases.save_pipeline(cases.config_of("sana-sprint", cases.SCM), found)
    (found / "said.json").write_text(SAID)
    return found


@pytest.fixture(scope="module")
def place(folder: Path) -> CheckpointPlace:
    return CheckpointPlace(folder, config=folder / "said.json")


@pytest.fixture(scope="module")
def opened(place: CheckpointPlace) -> Checkpoint:
    return place.open()


def test_a_pipeline_is_recognised(folder: Path, opened: Checkpoint) -> None:
    validate(opened)
    config, student = opened.config, library_student_of(opened.config.student)
    assert (config.family, config.steps, config.resolution, config.prompts) == ("diffusers", 4, (256, 256), ("a ring",))
    assert (student.guidance_embedded, student.latent_factor, student.text_streams[0].length) == (4.5, 32, 6)
    assert opened.folders == {"student": folder / "transformer"}
    assert {file.name for file in opened.files} == {
        cases.WEIGHTS, "config.json", "said.json", "model_index.json", "scheduler_config.json",
    }  # fmt: skip
    again = config_from_json(config_to_json(config), {"diffusers": family_of(config).student_type})
    assert again == config


def test_opening_needs_no_library(place: CheckpointPlace, opened: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_module, "student_type", lambda config: pytest.fail("imports diffusers"))
    assert place.open().tensors == opened.tensors


def test_the_library_makes_its_golden_vectors(place: CheckpointPlace, opened: Checkpoint, tmp_path: Path) -> None:
    drawing, path = GoldenSize("full", (128, 256), (4, 4, 8)), tmp_path / "golden.safetensors"
    write_own_vectors(OwnVectorsTask(place, drawing, ("student",), None, path, 1))
    vectors = open_golden(path, opened.config, drawing)
    assert vectors.held_to == {"student": "diffusers 0.39.0"} == held_to_libraries(opened.config, None)
    assert vectors.counts == {"student": 4, "pipeline": 1}  # a call for each step, and where they end
    assert vectors.picture is not None
    assert vectors.picture.noise.shape == (1, 4, 4, 4, 8)  # three of the four steps add noise
    schedule = schedule_of(opened.config)
    pipeline = Pipeline(components_of(opened.config), reference_runners(opened, "full"), schedule, drawing.latent)
    assert golden_psnr(pipeline, vectors.picture) > 100
    spec, network = components_of(opened.config)["student"], load_component(opened, "student", "full")
    assert golden_error(spec, network, vectors.cases["student"].rows()) < 1e-6


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("pixart", cases.LCM),
        ("pixart", cases.FLOW),
        ("pixart", cases.SCM),
        ("dreamlite", cases.DYNAMIC),
        ("sd3", cases.DYNAMIC),
    ],
)
def test_four_steps_end_where_the_librarys_scheduler_does(name: str, scheduler: dict[str, object], tmp_path: Path) -> None:
    config = cases.config_of(name, scheduler)
    cases.save_pipeline(config, tmp_path / "pipeline")
    streams = [{"name": s.name, "dim": s.dim, "length": s.length, "pooled": s.pooled} for s in config.text_streams]
    (tmp_path / "said.json").write_text(json.dumps({"prompts": ["a ring"], "student": {"text_streams": streams}}))
    opened = CheckpointPlace(tmp_path / "pipeline", config=tmp_path / "said.json").open()
    latent = (4, 8, 8)
    schedule, text = schedule_of(opened.config), random_text(opened.config, 5)
    pipeline = Pipeline(components_of(opened.config), reference_runners(opened, "full"), schedule, latent)
    got = pipeline.denoise(noise_for(7, latent, TORCH, schedule.fresh), text)
    part = next(path for path in (tmp_path / "pipeline").iterdir() if path.name in ("transformer", "unet"))
    library = load_library_student(config, part, lambda name: pytest.fail(name))
    given, seen = {key: torch.from_numpy(value) for key, value in text.items()}, StudentText({}, {}, {})
    for s in config.text_streams:
        seen.text[s.name], seen.mask[s.name] = given[s.name], given[f"{s.name}_mask"]
        if s.pooled:
            seen.pooled[s.name] = given[s.pooled_name]
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        x = draw_by_library(config, 4, lambda x, t: library_output(library, config, x, t, seen), latent, generator)
    assert cases.relative(torch.from_numpy(got), x) < 1e-5


def test_a_component_alone_needs_a_scheduler(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no scheduler; give the pipeline's folder, or student.scheduler with --config"):
        CheckpointPlace(folder / "transformer").open()
    (tmp_path / "said.toml").write_text(
        'steps = 2\n[student]\nlatent_factor = 8\n[student.scheduler]\n_class_name = "SCMScheduler"\n'
    )
    opened = CheckpointPlace(folder / "transformer", config=tmp_path / "said.toml").open()
    assert (opened.config.steps, opened.config.resolution) == (2, (64, 64))


def test_a_file_with_a_declared_class(folder: Path, tmp_path: Path) -> None:
    """Its configuration and scheduler come from --config alone; there is no folder that the library could read."""
    said = json.loads(SAID)
    said["family"] = "diffusers"
    said["student"] |= {
        "config": parse_json((folder / "transformer" / "config.json").read_text()), "scheduler": cases.SCM,
    }  # fmt: skip
    (tmp_path / "said.json").write_text(json.dumps(said))
    opened = CheckpointPlace(folder / "transformer" / cases.WEIGHTS, config=tmp_path / "said.json").open()
    assert opened.folders == {}
    student = load_student(opened, "full")
    assert sum(stage.depth for stage in student.training_cost((8, 8)).stages) == len(student.recomputable()) == 2


def test_a_lora_is_added(folder: Path, place: CheckpointPlace, opened: Checkpoint, tmp_path: Path) -> None:
    module = "transformer_blocks.0.attn1.to_q"
    a, b = torch.randn(2, 24), torch.randn(24, 2)
    save_file({f"transformer.{module}.lora_A.weight": a, f"transformer.{module}.lora_B.weight": b}, tmp_path / "l.safetensors")
    adapted = replace(place, loras=((tmp_path / "l.safetensors", 1.0),)).open()
    name = f"student.{module}.weight"
    assert adapted.adapted == {name}
    assert torch.allclose(adapted.read(name), opened.read(name) + b @ a)


def test_what_a_device_would_pay(opened: Checkpoint) -> None:
    costs = picture_costs(opened.config, "full", (256, 256), "onnx:cpu")
    assert sum(op.macs for op in costs["student"]) > 1e5
    facts = family_of(opened.config).facts(opened.config, "full")
    assert facts == {"hidden": 24, "heads": 3, "kv_heads": 3}


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("transformer/config.json", {"_class_name": "HunyuanDiT2DModel"}, "got 'HunyuanDiT2DModel', expected one of PixArt"),
        ("scheduler/scheduler_config.json", {"_class_name": "UniPCMultistepScheduler"}, "got 'UniPCMultistepScheduler', exp"),
        ("transformer/config.json", {"mlp_ratio": None}, "mlp_ratio: got nothing"),
    ],
)
def test_refusals_are_one_line(name: str, change: dict[str, object], said: str, tmp_path: Path) -> None:
    cases.save_pipeline(cases.config_of("sana"), tmp_path / "p")
    path = tmp_path / "p" / name
    path.write_text(json.dumps({**parse_json(path.read_text()), **change}))
    with pytest.raises(BadInput) as error:
        CheckpointPlace(tmp_path / "p").open()
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_family_may_be_named(folder: Path, place: CheckpointPlace) -> None:
    assert replace(place, family="diffusers").open().config.family == "diffusers"
    with pytest.raises(BadInput, match="--family: got 'unet', .*transformer has a student of diffusers"):
        replace(place, family="unet").open()
    with pytest.raises(BadInput, match="--family: got 'dit', expected one of elastic-dit, unet, diffusers"):
        replace(place, family="dit").open()


def test_another_configuration_comes_before_the_librarys(folder: Path, tmp_path: Path) -> None:
    """A foreign checkpoint may lie beside a config.json of diffusers."""
    for text in ('{"student": {"hidden": 8}}', '{"family": "unet"}'):
        (tmp_path / "mine.json").write_text(text)
        assert not is_library_student(folder / "transformer", tmp_path / "mine.json")
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors", {"snapgen_config": "{}"})
    (tmp_path / "config.json").write_text('{"_class_name": "PixArtTransformer2DModel"}')
    assert not is_library_student(tmp_path, None)
    assert is_library_student(folder / "transformer", folder / "said.json")


def test_mixed_precision_is_refused(opened: Checkpoint) -> None:
    plan = make_plan(opened.config, load_profile("iphone16pm"), targets=("coreml",), precision="mixed")
    with pytest.raises(BadInput, match="--precision mixed: a student of diffusers takes no recipe"):
        with_mixed(plan, opened, bits=None, iterations=None, calibration=None, pictures=None, executor=None)


def test_text_encoders_of_the_folder_are_read_as_its_pipeline_does(tmp_path: Path) -> None:
    """Stable Diffusion's pipeline masks no padding; the U-Net lies in its own folder."""
    cases.save_pipeline(cases.config_of("sd", cases.LCM), tmp_path / "p")
    write_folder(tmp_path / "p" / "text_encoder", "clip_text_model", hidden_size=20, max_position_embeddings=77)
    index = tmp_path / "p" / "model_index.json"
    index.write_text(json.dumps({**parse_json(index.read_text()), "text_encoder": ["transformers", "CLIPTextModel"]}))
    opened = CheckpointPlace(tmp_path / "p").open()
    validate(opened, values=False)
    (encoder,) = opened.config.text_encoders
    assert isinstance(encoder, LibraryTextEncoder)
    assert (encoder.stream, encoder.length, encoder.layer, encoder.reading.padding_seen) == ("text", 77, -1, True)
    assert opened.reads_prompts


def test_dreamlite_as_its_pipeline_reads_and_draws(tmp_path: Path) -> None:
    """Qwen3-VL's text in the pipeline's template, and noise levels of the picture's size."""
    folder = tmp_path / "p"
    cases.save_pipeline(cases.config_of("dreamlite", cases.DYNAMIC), folder)
    text = MODELS["qwen3_vl"][1]["text_config"] | {"hidden_size": 20, "max_position_embeddings": 256}
    write_folder(folder / "text_encoder", "qwen3_vl", text_config=text)
    index = folder / "model_index.json"
    named = {"text_encoder": ["transformers", "Qwen3VLForConditionalGeneration"]}
    index.write_text(json.dumps({**parse_json(index.read_text()), **named}))
    opened = CheckpointPlace(folder).open()
    validate(opened, values=False)
    (encoder,) = opened.config.text_encoders
    assert isinstance(encoder, LibraryTextEncoder)
    assert (encoder.stream, encoder.length, encoder.dropped, encoder.padding) == ("text", 234, 34, "right")
    assert encoder.reading.template.endswith("[Generate]: {}<|im_end|>\n<|im_start|>assistant\n")
    student = library_student_of(opened.config.student)
    mu = 0.5 + (1.15 - 0.5) * (8 * 8 // 4 - 256) / (4096 - 256)
    assert opened.config.shift == pytest.approx(np.exp(mu))
    family = family_of(opened.config)
    assert (opened.config.resolution, family.size_problems(opened.config, (4, 16))) == ((64, 64), [])
    assert student.shift_tokens((8, 8)) == 16


def test_one_schedule_is_of_one_number_of_tokens(tmp_path: Path) -> None:
    cases.save_pipeline(cases.config_of("flux-dev", cases.DYNAMIC), tmp_path / "p")
    opened = CheckpointPlace(tmp_path / "p").open()
    with pytest.raises(BadInput, match="512x512 .* noise levels for 1024x1024 .* the nearest that do are 1024x1024"):
        make_plan(opened.config, load_profile("iphone16pm"), resolution=(512, 512))
    (tmp_path / "said.toml").write_text("resolution = [512, 512]\n")
    smaller = CheckpointPlace(tmp_path / "p", config=tmp_path / "said.toml").open()
    assert make_plan(smaller.config, load_profile("iphone16pm")).resolution == (512, 512)
    assert smaller.config.shift < opened.config.shift


def test_noise_of_steps_comes_after_the_first() -> None:
    for generator in ("torch", "philox4x32-10"):
        drawn = noise_for(3, (4, 8, 8), generator, 2)
        assert drawn.shape == (1, 3, 4, 8, 8)
        assert np.array_equal(drawn[:, 0], noise_for(3, (4, 8, 8), generator))
        assert len(np.unique(drawn)) > 700
