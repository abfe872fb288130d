"""Untrained checkpoints: seeded initial weights for any configuration, written one tensor at a time.

Each tensor has a random stream of its own, derived from the seed and the tensor's name: the same seed gives the same values
whatever the order and shards in which they are written.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from snapgen_deploy.checkpoint.expected import expected_shapes
from snapgen_deploy.checkpoint.header import DTYPE_BYTES, TensorInfo
from snapgen_deploy.checkpoint.opener import open_checkpoint
from snapgen_deploy.checkpoint.writer import stream_sharded
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.component import ComponentSpec
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models.config import ModelConfig
from snapgen_deploy.models.presets import SHAPES_PROMPTS
from snapgen_deploy.models.tokenizer import WordTokenizer

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


def _untrained(config: ModelConfig, tokenizers: Sequence[str]) -> tuple[ModelConfig, list[str]]:
    """The configuration marked as untrained, and a tokenizer for each of its text encoders.

    Without tokenizers all are the embedded checkpoint's, if its few words fit every vocabulary; then its prompts are used if
    the configuration has none of its own, or words that it does not know.
    """
    config, encoders = replace(config, trained=False), components_of(config).encoders
    if tokenizers or not encoders:
        return config, list(tokenizers)
    text = open_checkpoint(None).tokenizer
    assert text is not None
    known = WordTokenizer(text)
    if known.embedding_rows > min(spec.reads.vocab for spec in encoders):
        return config, []
    try:
        for prompt in config.prompts:
            known.encode(prompt, min(spec.reads.length for spec in encoders))
        prompts = config.prompts or SHAPES_PROMPTS
    except BadInput:
        prompts = SHAPES_PROMPTS
    return replace(config, prompts=prompts), [text] * len(encoders)


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
    tokenizers: Sequence[str] = (),
    on_tensor: Callable[[int], None] = lambda count: None,
) -> list[Path]:
    """Write an untrained checkpoint into `directory` and return its shards; `on_tensor` gets the bytes of each tensor made.

    `tokenizers` has the text of a tokenizer.json for each text encoder; without them the embedded checkpoint's is used. Peak
    memory is one tensor in fp32 and its copy in `dtype`.

    Raises:
        BadInput: if `directory` cannot be written to, or its disk is full.
    """
    code, kind = WEIGHT_DTYPES[dtype]
    config, texts = _untrained(config, tokenizers)
    shapes = expected_shapes(config)
    infos = {n: TensorInfo(s, code, math.prod(s) * DTYPE_BYTES[code]) for n, s in shapes.items()}

    components = components_of(config)

    def make(name: str) -> Tensor:
        on_tensor(infos[name].nbytes)
        component, _, own = name.partition(".")
        return initial_tensor(components[component], own, shapes[name], seed).to(kind)

    first, others = (texts[0], texts[1:]) if texts else (None, [])
    return stream_sharded(
        infos, make, config, directory, max_shard_bytes, tokenizer=first, license="Apache-2.0", other_tokenizers=others
    )
