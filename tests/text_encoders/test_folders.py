"""Text encoders in folders of transformers: tokenizers, settings, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from snapgen_deploy.checkpoint import CheckpointPlace, save_checkpoint
from snapgen_deploy.checkpoint.text_folder import open_text_folder
from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.config import TextStream
from snapgen_deploy.models.tokenizer import WordTokenizer
from tests.checkpoint.foreign import our_state, pixart_config

from .folders import TOKENIZERS, write_folder

STREAM = TextStream("text", 32, 40)
PROMPTS = ("a red ring", "Two GREEN circles,  one star!", "über den Fluß", "", "a")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("originals")
    kinds = {"clip": "clip_text_model", "t5": "t5", "gemma": "gemma3_text", "qwen": "qwen3"}
    for name, kind in kinds.items():
        write_folder(root / name, kind, **({"max_position_embeddings": 64} if name == "clip" else {}))
    return root


@pytest.fixture
def folder(originals: Path, tmp_path: Path) -> Path:
    """A CLIP of which a test may change something."""
    return Path(shutil.copytree(originals / "clip", tmp_path / "clip"))


def read(path: Path, prompt: str) -> tuple[list[int], list[int]]:
    found = open_text_folder(path, STREAM)
    return WordTokenizer(found.tokenizer, found.config.reading).encode(prompt, found.config.length)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_those_of_the_library(originals: Path, name: str) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(originals / name))
    for prompt in PROMPTS:
        expected = theirs(prompt, padding="max_length", max_length=STREAM.length)
        assert read(originals / name, prompt) == (expected["input_ids"], expected["attention_mask"]), prompt


@pytest.mark.parametrize("name", ["gemma", "qwen"])
def test_chat_templates(originals: Path, tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(originals / name))
    settings = tmp_path / "llm.toml"
    settings.write_text(f'folder = "{originals / name}"\ntemplate = "chat"\n')
    for prompt in ("a red ring", "über den Fluß"):
        expected = theirs.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, padding="max_length", max_length=40,
            return_dict=True,
        )  # fmt: skip
        assert read(settings, prompt) == (expected["input_ids"], expected["attention_mask"])


def test_settings(originals: Path, tmp_path: Path) -> None:
    settings = tmp_path / "llm.toml"
    settings.write_text(
        f'folder = "{originals / "gemma"}"\ntemplate = "Draw this: {{}}"\nlayer = -2\nnormed = true\ndropped = 4\n'
        'padding = "right"\npad = 1\npadding_seen = true\n'
    )
    found = open_text_folder(settings, STREAM)
    assert (found.config.layer, found.config.normed, found.config.dropped, found.config.length) == (-2, True, 4, 44)
    tokens, mask = read(settings, "a")
    assert (len(tokens), tokens[-1], mask) == (44, 1, [1] * 44)
    assert settings in found.files
    with pytest.raises(BadInput, match="at most 44 fit"):
        read(settings, "a " * 50)


def test_a_tokenizer_may_lie_beside_it_as_diffusers_has_it(originals: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / "clip", tmp_path / "text_encoder_2")
    (tmp_path / "tokenizer_2").mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.move(tmp_path / "text_encoder_2" / name, tmp_path / "tokenizer_2" / name)
    assert read(tmp_path / "text_encoder_2", "a red ring") == read(originals / "clip", "a red ring")


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"vocab_size": 300}, r"has token ids up to \d+, the encoder has 300 embeddings"),
        ({"vocab_size": 49408}, r"has \d+ token ids, the encoder 49408 embeddings"),
        ({"eos_token_id": 7}, r"ends texts with id \d+, the encoder's configuration with 7"),
        ({"hidden_size": 48}, "gives 48 channels, the student's text stream takes 32"),
        ({"max_position_embeddings": 39}, "length: got 40 tokens, the encoder takes 39"),
        ({"num_hidden_layers": 2}, "tensors that its config.json has no place for: .*layers.2"),
    ],
)
def test_a_tokenizer_or_configuration_of_another_model(folder: Path, settings: dict[str, Any], said: str) -> None:
    change(folder / "config.json", **settings)
    with pytest.raises(BadInput, match=said) as refused:
        open_text_folder(folder, STREAM)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('folder = "clip"\npad = 9999', r"pads with id 9999, the encoder has \d+ embeddings"),
        ('folder = "clip"\ntemplate = "no place"', "expected a text with one {} for the prompt"),
        ('folder = "clip"\ntemplate = "chat"', "its chat template cannot be used"),
        ('folder = "clip"\nlayers = 2', "layers"),
        ('folder = "clip"\nlayer = 9', "layer: got 9"),
        ('folder = "nowhere"', "not a folder"),
        ("folder = ", "cannot be read as TOML"),
    ],
)
def test_bad_settings(folder: Path, text: str, said: str) -> None:
    settings = folder.parent / "settings.toml"
    settings.write_text(text)
    with pytest.raises(BadInput, match=said):
        open_text_folder(settings, STREAM)


def test_a_padding_that_is_not_the_encoders(originals: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(originals / "t5", tmp_path / "t5"))
    change(folder / "config.json", pad_token_id=1)
    with pytest.raises(BadInput, match="pads with id 0, the encoder's configuration with 1"):
        open_text_folder(folder, STREAM)


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    (folder / "vocab.json").unlink()
    with pytest.raises(BadInput, match="has no tokenizer: expected one of tokenizer.json"):
        open_text_folder(folder, STREAM)


def test_tensors_of_other_parts_are_left_out(folder: Path) -> None:
    import torch

    state = load_file(folder / "model.safetensors")
    state |= {"text_model.embeddings.position_ids": torch.arange(64)[None], "vision_model.post_layernorm.bias": torch.zeros(4)}
    save_file(state, folder / "model.safetensors")
    assert len(open_text_folder(folder, STREAM).stored) == len(state) - 2


def test_a_pointer_instead_of_a_tokenizer(folder: Path) -> None:
    (folder / "vocab.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 1\n")
    with pytest.raises(BadInput, match=r"vocab\.json: got a Git LFS pointer"):
        open_text_folder(folder, STREAM)


def test_a_lora_of_pefts_in_a_text_encoder(folder: Path, tmp_path: Path) -> None:
    """As `peft` merges it; names are those of the library's network."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    model = peft.get_peft_model(
        transformers.CLIPTextModel.from_pretrained(str(folder)), peft.LoraConfig(r=2, target_modules=["q_proj", "fc1"])
    )
    for name, tensor in model.named_parameters():
        if "lora_" in name:
            tensor.data.normal_(std=0.1)
    model.save_pretrained(str(tmp_path / "lora"))
    config = pixart_config()
    config = replace(config, student=replace(config.student, text_streams=(STREAM,)))
    save_checkpoint(our_state(config), config, tmp_path / "x.safetensors")
    place = CheckpointPlace(tmp_path / "x.safetensors", text_encoders=(("text", folder),))
    plain, opened = place.open(), replace(place, loras=((tmp_path / "lora", 1.0),)).open()
    for name, wanted in model.merge_and_unload().state_dict().items():
        if name.endswith(("q_proj.weight", "fc1.weight")):
            ours = next(n for n in opened.tensors if n.startswith("text_encoder.") and n.endswith(f".{name}"))
            assert torch.allclose(opened.read(ours), wanted, atol=1e-5)
            assert not torch.allclose(opened.read(ours), plain.read(ours), atol=1e-3)
