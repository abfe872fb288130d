"""Stage 3: encodes pictures to latents and prompts to embeddings once, so that the student's training need not do it.

They are stored in shards of 4096 scenes: {latents (n, C, 16, 16), text (n, L, T), mask (n, L)} in fp16.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from examples.shapes.autoencoder import encode
from examples.shapes.stages import pictures, scenes, tokenizer, tokens_of
from snapgen_deploy.models import DecoderConfig, TextEncoder

SHARD = 4096


@dataclass(frozen=True)
class Pairs:
    """Latents with the embeddings of their prompts, and the embedding of the empty prompt."""

    latents: Tensor
    text: Tensor
    mask: Tensor
    empty_text: Tensor
    empty_mask: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, count: int, drop: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Random latents, text and mask; a share `drop` of them has the empty prompt."""
        chosen = torch.randint(len(self), (count,))
        text, mask = self.text[chosen].clone(), self.mask[chosen].clone()
        dropped = torch.rand(count) < drop
        text[dropped], mask[dropped] = self.empty_text, self.empty_mask
        return self.latents[chosen].float(), text, mask


@torch.no_grad()
def embed(encoder: TextEncoder, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Embeddings (B, L, T) and masks (B, L) of prompts."""
    tokens, mask = tokens_of(tokenizer(), prompts, encoder.config.length)
    parts = [encoder(t, m) for t, m in zip(tokens.split(256), mask.split(256), strict=True)]
    return torch.cat(parts), mask.float()


@torch.no_grad()
def make_shard(number: int, path: Path, config: DecoderConfig, text: TextEncoder, count: int = SHARD) -> None:
    """Draw and encode one shard of the training split."""
    drawn = scenes(1000 + number, count)
    parts = [encode(config, pictures([s for _, s in drawn[i : i + 128]])) for i in range(0, count, 128)]
    embeddings, mask = embed(text, [spec.text() for spec, _ in drawn])
    shard = {"latents": torch.cat(parts).half(), "text": embeddings.half(), "mask": mask.half()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(shard, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def load(directory: Path, text: TextEncoder) -> Pairs:
    """Load all shards of a directory."""
    shards = [torch.load(p, weights_only=True) for p in sorted(directory.glob("shard*.pt"))]
    empty_text, empty_mask = embed(text, [""])
    joined = {name: torch.cat([s[name] for s in shards]) for name in ("latents", "text", "mask")}
    return Pairs(**joined, empty_text=empty_text[0].half(), empty_mask=empty_mask[0].half())
