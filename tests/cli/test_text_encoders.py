"""A text encoder of transformers from its folder to a picture, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTextModel

from snapgen_deploy.check.golden import GoldenTask, hold_reference
from snapgen_deploy.checkpoint import CheckpointPlace
from snapgen_deploy.golden.recorder import Recorder
from snapgen_deploy.golden.vectors import open_golden
from tests.cli.conftest import invoke
from tests.text_encoders.folders import write_folder

LENGTH = 16  # of the small checkpoint's text stream, and its width


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP for the small student."""
    folder = tmp_path_factory.mktemp("encoders") / "clip"
    return write_folder(folder, "clip_text_model", hidden_size=LENGTH, max_position_embeddings=LENGTH)


@pytest.fixture(scope="module")
def drawn(checkpoint: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with it."""
    out = tmp_path_factory.mktemp("bundles")
    done = invoke(
        "export", "--device", "server", "--checkpoint", checkpoint, "--width", "small", "--text-encoder", f"text={clip}",
        "-o", out, "--threads", 1,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "text encoder held to transformers 4.57" in " ".join(done.output.split())
    return out / "tiny-test-server"


def test_a_bundle_is_held_to_the_library(drawn: Path) -> None:
    manifest: dict[str, Any] = json.loads((drawn / "manifest.json").read_text())
    assert manifest["config"]["text_encoder"]["library"] == "transformers"
    held = [g for g in manifest["gates"] if g["component"] == "text_encoder" and g["name"] == "golden_error"]
    assert {g["target"] for g in held} == {"reference", "onnx:cpu"}
    assert all(g["verdict"] == "passed" for g in held)


def test_a_picture_is_drawn_from_a_prompt_of_any_words(drawn: Path, tmp_path: Path) -> None:
    done = invoke("generate", drawn, "--prompt", "Ein roter Ring!", "-o", tmp_path / "picture.png")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "picture.png").is_file()
    long = invoke("generate", drawn, "--prompt", "ring " * 99, "-o", tmp_path / "long.png")
    assert long.exit_code == 2
    assert f"at most {LENGTH} fit" in long.output


def test_an_encoder_with_another_activation_is_refused_by_its_own_vectors(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    network = CLIPTextModel.from_pretrained(str(clip)).eval()
    golden, mask = Recorder(), torch.ones(2, LENGTH)
    mask[:, 5:] = 0
    tokens = torch.randint(0, 500, mask.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text = network(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    golden.add("text_encoder", tokens=tokens, mask=mask, text=text)
    golden.save(tmp_path / "golden.safetensors")
    other = Path(shutil.copytree(clip, tmp_path / "clip"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    place = CheckpointPlace(checkpoint, text_encoders=(("text", other),))
    vectors = open_golden(tmp_path / "golden.safetensors", place.open().config)
    held = hold_reference(GoldenTask(place, "small", vectors, torch.get_num_threads(), 60.0))
    assert [g.verdict for g in held.gates] == ["failed"]
    assert "activation: quick_gelu (here GELU); set the activation in config.json" in held.causes["text_encoder"]
