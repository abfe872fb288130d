"""A text encoder of transformers from its folder to a picture, through the command line.

The bundle has all that may be said of the text: a student that takes a pooled vector, a LoRA in student and encoder, and a
text stream that stays empty.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from snapgen_deploy.check import verify
from snapgen_deploy.check.golden import GoldenTask, hold_reference
from snapgen_deploy.checkpoint import CheckpointPlace
from snapgen_deploy.golden.recorder import Recorder
from snapgen_deploy.golden.vectors import open_golden
from snapgen_deploy.job import golden
from snapgen_deploy.models.config import TextStream
from snapgen_deploy.models.dit_config import dit_of
from snapgen_deploy.system.files import sha256_of
from tests.cli.conftest import in_this_process, invoke, tiny_config, write_checkpoint
from tests.text_encoders.folders import write_folder

LENGTH, POOLED = 16, 12  # of the small checkpoint's text stream, and its width; channels of the pooled vector


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP for the small student."""
    folder = tmp_path_factory.mktemp("encoders") / "clip"
    return write_folder(
        folder, "clip_text_model", "CLIPTextModelWithProjection", hidden_size=LENGTH, max_position_embeddings=LENGTH,
        projection_dim=POOLED,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """A checkpoint whose student takes a pooled vector and has a second text stream, and what options say of its parts."""
    folder, config = tmp_path_factory.mktemp("model"), tiny_config()
    streams = (TextStream("text", LENGTH, LENGTH, POOLED), TextStream("llm", 8, 4))
    student = replace(dit_of(config), text_streams=streams, depths=(1, 1, 1), widths={"small": 0.5})
    write_checkpoint(folder / "pooled.safetensors", replace(config, student=student, text_encoder=None, name="pooled-test"))
    lora: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for module, (out, into) in {
        "text_encoder.model.text_model.encoder.layers.0.self_attn.q_proj": (LENGTH, LENGTH),
        "student.down.0.cross.q": (LENGTH, 32),
    }.items():
        lora[f"{module}.lora_A.weight"] = 0.3 * torch.randn(2, into, generator=generator)
        lora[f"{module}.lora_B.weight"] = 0.3 * torch.randn(out, 2, generator=generator)
    save_file(lora, folder / "style.safetensors")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")  # of the LoRA
    return (
        "--checkpoint", folder / "pooled.safetensors", "--text-encoder", f"text={clip}", "--without-text-encoder", "llm",
        "--lora", f"{folder / 'style.safetensors'}:0.5",
    )  # fmt: skip


@pytest.fixture(scope="module")
def drawn(model: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of it."""
    out = tmp_path_factory.mktemp("bundles")
    done = invoke("export", "--device", "server", *model, "-o", out, "--threads", 1)
    said = " ".join(done.output.split())
    assert done.exit_code == 0, done.output
    assert "text encoder held to transformers 4.57" in said
    assert "text stream llm stays empty: its embeddings and mask are zeros" in said
    assert "LoRA style.safetensors times 0.5: 2 modules" in said
    return out / "pooled-test-server"


def test_a_bundle_is_held_to_the_library(drawn: Path, model: tuple[object, ...]) -> None:
    manifest: dict[str, Any] = json.loads((drawn / "manifest.json").read_text())
    assert manifest["config"]["text_encoder"]["library"] == "transformers"
    held = [g for g in manifest["gates"] if g["component"] == "text_encoder" and g["name"] == "golden_error"]
    assert {g["target"] for g in held} == {"reference", "onnx:cpu"}
    assert all(g["verdict"] == "passed" for g in held)
    lora = Path(str(model[-1]).rpartition(":")[0])
    assert manifest["checkpoint"]["loras"] == [{"name": "style.safetensors", "sha256": sha256_of(lora), "scale": 0.5}]
    assert manifest["config"]["absent_streams"] == ["llm"]
    components = manifest["targets"]["onnx:cpu"]["components"]
    assert [p["name"] for p in components["text_encoder"]["outputs"]] == ["text", "text_pooled"]
    assert [p["name"] for p in components["student"]["inputs"]][2:] == ["text", "text_mask", "llm", "llm_mask", "text_pooled"]
    with safe_open(drawn / "golden.safetensors", framework="np") as vectors:
        assert vectors.get_tensor("text_encoder.text_pooled").shape == (3, POOLED)


@pytest.mark.slow
def test_every_target_of_a_phone_takes_pooled_vectors(model: tuple[object, ...], tmp_path: Path) -> None:
    done = invoke("export", "--device", "iphone16pm", *model, "-o", tmp_path, "--threads", 2)
    assert done.exit_code == 0, done.output
    manifest: dict[str, Any] = json.loads((tmp_path / "pooled-test-iphone16pm" / "manifest.json").read_text())
    assert {"coreml", "executorch:xnnpack", "onnx:cpu"} <= set(manifest["targets"])
    for key, target in manifest["targets"].items():
        student = target["components"]["student"]
        assert "text_pooled" in [p["name"] for p in student["inputs"]]
        if key.startswith("executorch"):
            assert (student["placement"]["XnnpackBackend"], student["portable_ops"]) == (1, {})


def test_verify_holds_both_outputs(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process(monkeypatch, modules=(verify,))
    done = invoke("verify", drawn)
    assert done.exit_code == 0, done.output
    arrays = load_file(drawn / "golden.safetensors")
    arrays["text_encoder.text_pooled"] += 1.0
    save_file(arrays, other := drawn.parent / "other.safetensors")
    done = invoke("verify", drawn, "--golden", other, "--json")
    failed = [g for g in json.loads(done.stdout)["gates"] if g["verdict"] == "failed"]
    assert [(g["component"], g["name"]) for g in failed] == [("text_encoder", "golden_error")]


def test_a_stream_that_the_student_has_not_is_one_line(model: tuple[object, ...], tmp_path: Path) -> None:
    where = ("--device", "server", *model[:4], "-o", tmp_path / "out", "--dry-run")
    for name, said in (
        ("gemma", "text encoder 'gemma': the student has no such text stream; it has text, llm"),
        ("text", "text encoder 'text': got 2 times, expected one folder or none for a stream"),
    ):
        done = invoke("export", *where, "--without-text-encoder", name)
        assert done.exit_code == 2
        assert said in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


def test_a_picture_is_drawn_from_a_prompt_of_any_words(drawn: Path, tmp_path: Path) -> None:
    done = invoke("generate", drawn, "--prompt", "Ein roter Ring!", "-o", tmp_path / "picture.png")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "picture.png").is_file()
    long = invoke("generate", drawn, "--prompt", "ring " * 99, "-o", tmp_path / "long.png")
    assert long.exit_code == 2
    assert f"at most {LENGTH} fit" in long.output


def _swap(network: CLIPTextModel) -> None:
    for layer in network.text_model.encoder.layers:
        layer.self_attn.q_proj, layer.self_attn.k_proj = layer.self_attn.k_proj, layer.self_attn.q_proj


def _see_all(network: CLIPTextModel) -> None:
    for layer in network.text_model.encoder.layers:
        attend = layer.self_attn.forward
        layer.self_attn.forward = lambda attend=attend, **given: attend(**given | {"causal_attention_mask": None})


TRAINED: dict[str, Callable[[CLIPTextModel], None]] = {
    "q, k, v of attention: q and k swapped (here q, k, v); exchange their names in the file": _swap,
    "mask: no causal mask (here causal mask)": _see_all,
}


@pytest.mark.parametrize("said", TRAINED)
def test_one_that_was_trained_otherwise_is_refused_with_its_cause(
    checkpoint: Path, clip: Path, tmp_path: Path, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The team's vectors are of a network whose folder fits in every name and shape."""
    network = CLIPTextModel.from_pretrained(str(clip), attn_implementation="eager").eval()
    TRAINED[said](network)
    recorder, tokens, mask = Recorder(), torch.randint(0, 500, (1, LENGTH)), torch.ones(1, LENGTH, dtype=torch.long)
    mask[:, 9:] = 0
    names = {"tokens": "input_ids", "mask": "attention_mask"}
    with recorder.watch("text_encoder", network, inputs=names, output=("text", "last_hidden_state")), torch.no_grad():
        network(input_ids=tokens, attention_mask=mask)
    recorder.save(tmp_path / "golden.safetensors")
    given = ("--text-encoder", f"text={clip}", "--golden", tmp_path / "golden.safetensors")
    in_this_process(monkeypatch, modules=(golden,))
    done = invoke("export", "--device", "server", "--checkpoint", checkpoint, *given, "-o", tmp_path / "out", "--threads", 1)
    assert done.exit_code == 1
    assert said in " ".join(done.output.split())
    assert list((tmp_path / "out").glob("*")) == []


def test_an_encoder_with_another_activation_is_refused_by_its_own_vectors(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    network = CLIPTextModel.from_pretrained(str(clip)).eval()
    recorder, mask = Recorder(), torch.ones(2, LENGTH)
    mask[:, 5:] = 0
    tokens = torch.randint(0, 500, mask.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text = network(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    recorder.add("text_encoder", tokens=tokens, mask=mask, text=text)
    recorder.save(tmp_path / "golden.safetensors")
    other = Path(shutil.copytree(clip, tmp_path / "clip"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    place = CheckpointPlace(checkpoint, text_encoders=(("text", other),))
    vectors = open_golden(tmp_path / "golden.safetensors", place.open().config)
    held = hold_reference(GoldenTask(place, "small", vectors, torch.get_num_threads(), 60.0))
    assert [g.verdict for g in held.gates] == ["failed"]
    assert "activation: quick_gelu (here GELU); set the activation in config.json" in held.causes["text_encoder"]
