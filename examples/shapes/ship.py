"""Writes the shipped checkpoint: student, decoder and text encoder in fp16, configuration and tokenizer in its header."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from examples.shapes.stages import tokenizer
from snapgen_deploy.checkpoint import checkpoint_state, save_checkpoint
from snapgen_deploy.checkpoint.writer import Elastic
from snapgen_deploy.models import PRESETS, ElasticDiT, ModelConfig, TextEncoder, TinyDecoder
from snapgen_deploy.models.dit_config import dit_of

SHIPPED = Path("snapgen_deploy/assets/shapes.safetensors")


def ship(student: ElasticDiT, decoder: TinyDecoder, text: TextEncoder, path: Path = SHIPPED) -> None:
    """Writes the file; the same weights give the same bytes."""
    ship_as(PRESETS["shapes"](), student, decoder, text, path)


def ship_as(config: ModelConfig, student: Elastic, decoder: TinyDecoder, text: TextEncoder, path: Path) -> None:
    """The same for a student of any family."""
    state = {name: tensor.to(torch.float16) for name, tensor in checkpoint_state(student, decoder, text).items()}
    config = replace(config, decoder=decoder.config, trained=True)
    save_checkpoint(state, config, path, tokenizer=tokenizer().to_json(), license="Apache-2.0")


def shipped_student(path: Path = SHIPPED) -> ElasticDiT:
    """The student of the shipped file, at all widths."""
    net, shipped = ElasticDiT(dit_of(PRESETS["shapes"]())), load_file(path)
    net.tensors.load_state_dict({key: shipped[f"student.{key.replace('/', '.')}"].float() for key in net.tensors})
    return net
