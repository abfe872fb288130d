"""A checkpoint small enough to write hundreds of times, and what every bad input must look like."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from snapgen_deploy.checkpoint import checkpoint_state
from snapgen_deploy.errors import BadInput
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

TOKENIZER = WordTokenizer.from_words(["a", "red", "ring"]).to_json()


def tiny_config() -> ModelConfig:
    student = DiTConfig(
        latent_channels=4, hidden=64, head_dim=8, kv_group=1, depths=(1, 2, 1), blocks=4, text_width=16, cross_dim=16,
        text_streams=(TextStream("text", 16, 6),), time_features=16,
    )  # fmt: skip
    decoder = DecoderConfig(
        latent_channels=4, channels=(16, 8, 8, 8), blocks=(1, 0, 0, 0), latent_mean=(0.5, 0.0, -0.5, 1.0), latent_std=(1.0,) * 4
    )
    return ModelConfig(student, decoder, TextEncoderConfig(vocab=10, length=6, width=16, layers=1, heads=2), name="tiny-test")


def tiny_model() -> tuple[ElasticDiT, dict[str, Tensor]]:
    config = tiny_config()
    assert config.decoder is not None
    assert config.text_encoder is not None
    torch.manual_seed(0)
    elastic = ElasticDiT(config.student)
    return elastic, checkpoint_state(elastic, TinyDecoder(config.decoder), TextEncoder(config.text_encoder))


def refused(call: Callable[[], Any], *parts: str) -> str:
    """`call` must raise BadInput with one short line that has all `parts`; returns the line.

    The parts may also stand among all that is wrong, which a command lists where the line has no room for it.
    """
    with pytest.raises(BadInput) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(" ".join(word for word in message.split() if os.sep not in word)) <= 300  # beside paths
    said = "\n".join((message, *getattr(caught.value, "problems", ())))
    assert caught.value.exit_code == 2
    for part in parts:
        assert part in said, f"{part!r} is not in: {said}"
    return message
