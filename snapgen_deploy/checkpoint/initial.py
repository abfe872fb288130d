"""Untrained checkpoints: seeded initial weights for any configuration, written one tensor at a time.

Each tensor has a random stream of its own, derived from the seed and the tensor's name: the same seed gives the same values
whatever the order and shards in which they are written.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from snapgen_deploy.checkpoint.expected import expected_shapes
from snapgen_deploy.checkpoint.header import DTYPE_BYTES, TensorInfo
from snapgen_deploy.checkpoint.opener import open_checkpoint
from snapgen_deploy.checkpoint.writer import stream_sharded
from snapgen_deploy.families.component import ComponentSpec
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models.config import ModelConfig
from snapgen_deploy.models.presets import SHAPES_PROMPTS

WEIGHT_DTYPES = {"fp32": ("F32", torch.float32), "fp16": ("F16", torch.float16), "bf16": ("BF16", torch.bfloat16)}


def initial_tensor(spec: ComponentSpec, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Initial fp32 values of the component's tensor `name`, such that activations stay of order one at any depth.

    Biases are zero and norms one; all other weights are normal, as `ComponentSpec.initial` says. No output layer is zero, so
    that every path contributes to the result that an export is checked against.
    """
    plain = name.partition("@")[0]
    if plain.endswith("bias"):
        return torch.zeros(shape)
    if plain.endswith("weight") and len(shape) == 1:
        return torch.ones(shape)
    how = spec.initial(plain, shape)
    if not how.deviation:
        return torch.full(shape, how.mean)
    stream = hashlib.sha256(f"{seed}:{spec.name}.{name}".encode()).digest()
    # numpy's PCG64 rather than torch's generator, whose normal numbers depend on the processor's vector width
    values = np.random.Generator(np.random.PCG64(int.from_bytes(stream))).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(values).mul_(how.deviation).add_(how.mean)


def _untrained(config: ModelConfig) -> tuple[ModelConfig, str | None]:
    """The configuration marked as untrained, and a tokenizer for its text encoders (None if it has none).

    The tokenizer is the embedded checkpoint's, whose few words fit any vocabulary. Its prompts are used if the configuration
    has none of its own.
    """
    config = replace(config, trained=False)
    if not config.text_encoders:
        return config, None
    return replace(config, prompts=config.prompts or SHAPES_PROMPTS), open_checkpoint(None).tokenizer


def initial_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of all tensors of a checkpoint at `dtype` (fp32, fp16 or bf16)."""
    return sum(math.prod(s) for s in expected_shapes(config).values()) * DTYPE_BYTES[WEIGHT_DTYPES[dtype][0]]


def write_initial(
    config: ModelConfig,
    directory: Path,
    *,
    seed: int = 0,
    max_shard_bytes: int = 10**9,
    dtype: str = "fp32",
    on_tensor: Callable[[int], None] = lambda count: None,
) -> list[Path]:
    """Write an untrained checkpoint into `directory` and return its shards; `on_tensor` gets the bytes of each tensor made.

    Peak memory is one tensor in fp32 and its copy in `dtype`.

    Raises:
        BadInput: if `directory` cannot be written to, or its disk is full.
    """
    code, kind = WEIGHT_DTYPES[dtype]
    config, tokenizer = _untrained(config)
    shapes = expected_shapes(config)
    infos = {n: TensorInfo(s, code, math.prod(s) * DTYPE_BYTES[code]) for n, s in shapes.items()}

    components = components_of(config)

    def make(name: str) -> Tensor:
        on_tensor(infos[name].nbytes)
        component, _, own = name.partition(".")
        return initial_tensor(components[component], own, shapes[name], seed).to(kind)

    others = [] if tokenizer is None else [tokenizer] * len(config.other_text_encoders)
    return stream_sharded(
        infos, make, config, directory, max_shard_bytes, tokenizer=tokenizer, license="Apache-2.0", other_tokenizers=others
    )
