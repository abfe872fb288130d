"""Two text encoders on board, each with a tokenizer of its own that numbers words in its own way."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from snapgen_deploy.bundle.reader import Bundle, open_bundle
from snapgen_deploy.bundle.vectors import port_values, read_vectors
from snapgen_deploy.check import verify
from snapgen_deploy.check.facts import refuse_contradictions
from snapgen_deploy.checkpoint import checkpoint_state, open_checkpoint, save_checkpoint, validate
from snapgen_deploy.checkpoint.initial import write_initial
from snapgen_deploy.errors import BadInput, GateFailed
from snapgen_deploy.families.registry import student_types
from snapgen_deploy.job import checked, convert, drawn
from snapgen_deploy.models import (
    DecoderConfig,
    ElasticDiT,
    ModelConfig,
    TextEncoder,
    TextEncoderConfig,
    TextStream,
    TinyDecoder,
)
from snapgen_deploy.models.dit_config import dit_of
from snapgen_deploy.models.serialise import config_from_dict, config_to_dict
from snapgen_deploy.models.tokenizer import WordTokenizer
from tests.cli.conftest import WORDS, in_this_process, invoke, tiny_config

FIRST = WordTokenizer.from_words(WORDS).to_json()
SECOND = WordTokenizer.from_words(WORDS[::-1]).to_json()


def two_encoders() -> ModelConfig:
    config = tiny_config()
    assert config.text_encoder is not None
    streams = (*config.student.text_streams, TextStream("llm", 24, 12))
    second = TextEncoderConfig(config.text_encoder.vocab, length=12, width=24, layers=1, heads=3, stream="llm")
    student = replace(dit_of(config), text_streams=streams)
    return replace(config, student=student, other_text_encoders=(second,), name="two-encoders", prompts=("a red ring",))


def write(path: Path) -> Path:
    config = two_encoders()
    torch.manual_seed(0)
    elastic = ElasticDiT(dit_of(config))
    for tensor in elastic.tensors.values():  # as for the tiny checkpoint: every path has a share in the picture
        torch.nn.init.normal_(tensor, std=0.05 if tensor.ndim < 2 else tensor[0].numel() ** -0.5)
    assert isinstance(config.decoder, DecoderConfig)
    first, second = (TextEncoder(encoder) for encoder in config.text_encoders)
    state = checkpoint_state(elastic, TinyDecoder(config.decoder), first, [second])
    save_checkpoint(state, config, path, tokenizer=FIRST, other_tokenizers=[SECOND], license="MIT")
    return path


def test_two_text_encoders_from_the_checkpoint_to_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process(monkeypatch, modules=(drawn, convert, checked, verify))
    checkpoint = open_checkpoint(write(tmp_path / "two.safetensors"))
    validate(checkpoint)
    assert checkpoint.reads_prompts
    where = ("--device", "iphone16pm", "--checkpoint", checkpoint.path, "--target", "onnx", "-o", tmp_path, "--no-cache")
    done = invoke("export", *where, "--width", "small", "--threads", 1)
    assert done.exit_code == 0, done.output
    bundle = open_bundle(tmp_path / "two-encoders-iphone16pm")
    components = bundle.manifest["targets"]["onnx:cpu"]["components"]
    assert set(components) == {"text_encoder", "text_encoder_2", "student", "decoder"}
    assert components["text_encoder_2"]["outputs"][0]["name"] == "llm"
    assert "tokenizer_2.json" in components["text_encoder_2"]["inputs"][0]["doc"]
    assert bundle.manifest["tokenizers"] == {"text_encoder": "tokenizer.json", "text_encoder_2": "tokenizer_2.json"}
    assert {"tokenizer.json", "tokenizer_2.json"} <= set(bundle.manifest["files"])
    gates = {(g["component"], g["name"]): g["verdict"] for g in bundle.manifest["gates"]}
    assert gates["text_encoder", "relative_error"] == gates["text_encoder_2", "relative_error"] == "passed"
    arrays = read_vectors(bundle).arrays
    pairs = (("tokens", "mask"), ("text_encoder_2.tokens", "text_encoder_2.mask"))
    ids, other_ids = (arrays[name][0][arrays[mask][0] == 1] for name, mask in pairs)
    assert len(ids) == len(other_ids) == 5
    assert list(ids) != list(other_ids)
    assert np.array_equal(port_values(bundle)["text_encoder_2"]["tokens"], arrays["text_encoder_2.tokens"][:1])
    assert invoke("verify", bundle.path).exit_code == 0
    with pytest.raises(GateFailed, match=r"tokenizer_2\.json makes other tokens of 'a red ring'"):
        refuse_contradictions(with_tokenizer(bundle, "tokenizer_2.json", FIRST, tmp_path / "exchanged"), read_vectors(bundle))
    pictures = []
    for prompt in ("a red ring", "a blue ring"):
        pictures.append(tmp_path / f"{prompt}.png")
        done = invoke("generate", bundle.path, "--prompt", prompt, "-o", pictures[-1])
        assert done.exit_code == 0, done.output
    assert pictures[0].read_bytes() != pictures[1].read_bytes()


def with_tokenizer(bundle: Bundle, name: str, text: str, folder: Path) -> Bundle:
    """The bundle with another tokenizer file."""
    shutil.copytree(bundle.path, folder)
    (folder / name).write_text(text, encoding="utf-8")
    return Bundle(folder, bundle.manifest)


def test_the_configuration_says_what_each_encoder_feeds() -> None:
    data = config_to_dict(two_encoders())
    assert config_from_dict(json.loads(json.dumps(data)), student_types()) == two_encoders()
    assert "other_text_encoders" not in config_to_dict(tiny_config())
    data["other_text_encoders"][0]["stream"] = "text"
    with pytest.raises(BadInput, match=r"other_text_encoders\[0\]: gives 12 x 24, stream text .* is fed by 2 text encoders"):
        config_from_dict(data, student_types())


def test_an_untrained_one_has_a_tokenizer_for_each(tmp_path: Path) -> None:
    vocab = WordTokenizer(open_checkpoint(None).tokenizer or "").embedding_rows
    encoders = [replace(encoder, vocab=vocab) for encoder in two_encoders().text_encoders]
    config = replace(two_encoders(), text_encoder=encoders[0], other_text_encoders=(encoders[1],))
    write_initial(config, tmp_path / "initial")
    assert set(open_checkpoint(tmp_path / "initial").tokenizers) == {"text_encoder", "text_encoder_2"}


def test_without_the_second_tokenizer_nothing_reads_prompts(tmp_path: Path) -> None:
    opened = open_checkpoint(write(tmp_path / "two.safetensors"))
    state = {name: opened.read(name) for name in opened.tensors}
    save_checkpoint(state, opened.config, tmp_path / "one.safetensors", tokenizer=FIRST)
    assert not open_checkpoint(tmp_path / "one.safetensors").reads_prompts
    assert "no tokenizer" in invoke("inspect", tmp_path / "one.safetensors").output
