"""A student small enough to quantise in seconds, with weights that are no noise: every layer matters to the picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from snapgen_deploy.checkpoint import Checkpoint, checkpoint_state, open_checkpoint, save_checkpoint
from snapgen_deploy.models import (
    DecoderConfig,
    DiTConfig,
    ElasticDiT,
    ModelConfig,
    TextEncoder,
    TextEncoderConfig,
    TextStream,
    TinyDecoder,
)
from snapgen_deploy.models.tokenizer import WordTokenizer

WORDS = ["a", "red", "blue", "ring", "on", "gray"]
LATENT = (4, 8, 8)
PROMPTS = ("a red ring", "a blue ring on gray", "a ring", "red on gray")


def tiny_config(hidden: int = 32) -> ModelConfig:
    student = DiTConfig(
        latent_channels=4, hidden=hidden, head_dim=8, kv_group=2, depths=(1, 2, 1), blocks=4, text_width=16, cross_dim=16,
        text_streams=(TextStream("text", 16, 8),), time_features=16, widths={"tiny": 0.5, "full": 1.0},
    )  # fmt: skip
    decoder = DecoderConfig(latent_channels=4, channels=(16, 8, 8, 8), blocks=(1, 0, 0, 0), groups=4)
    encoder = TextEncoderConfig(vocab=10, length=8, width=16, layers=1, heads=2)
    return ModelConfig(student, decoder, encoder, name="tiny-test", resolution=(64, 64), prompts=PROMPTS)


def tiny_checkpoint(folder: Path, hidden: int = 32, *, encoder: bool = True) -> Checkpoint:
    """A saved and opened checkpoint; without `encoder` nothing reads prompts."""
    config = tiny_config(hidden)
    if not encoder:
        config = replace(config, text_encoder=None)
    torch.manual_seed(0)
    elastic = ElasticDiT(config.student)
    for tensor in elastic.tensors.values():  # tables and biases are zero at first: give every path a share in the picture
        torch.nn.init.normal_(tensor, std=0.05 if tensor.ndim < 2 else tensor[0].numel() ** -0.5)
    assert config.decoder is not None
    text = TextEncoder(config.text_encoder) if config.text_encoder is not None else None
    path = folder / "tiny.safetensors"
    words = WordTokenizer.from_words(WORDS).to_json() if encoder else None
    save_checkpoint(checkpoint_state(elastic, TinyDecoder(config.decoder), text), config, path, tokenizer=words, license="MIT")
    return open_checkpoint(path)
