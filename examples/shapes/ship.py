"""Writes the shipped checkpoint: student, decoder and text encoder in fp16, configuration and tokenizer in its header."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from examples.shapes.stages import tokenizer
from snapgen_deploy.checkpoint import checkpoint_state, save_checkpoint
from snapgen_deploy.models import PRESETS, ElasticDiT, TextEncoder, TinyDecoder

SHIPPED = Path("snapgen_deploy/assets/shapes.safetensors")


def ship(student: ElasticDiT, decoder: TinyDecoder, text: TextEncoder, path: Path = SHIPPED) -> None:
    """Writes the file; the same weights give the same bytes."""
    state = {name: tensor.to(torch.float16) for name, tensor in checkpoint_state(student, decoder, text).items()}
    config = replace(PRESETS["shapes"](), decoder=decoder.config, trained=True)
    save_checkpoint(state, config, path, tokenizer=tokenizer().to_json(), license="Apache-2.0")
