"""The reference text encoder: tokens (B, L) -> embeddings (B, L, D); a small bidirectional transformer, pre-norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.models.attention import MASKED, attend
from snapgen_deploy.models.config import TextEncoderConfig


class TextBlock(nn.Module):
    """LN -> attention -> + ; LN -> MLP -> + ."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (B, L, D), bias (B, 1, 1, L) -> (B, L, D)."""
        y = self.norm1(x)
        q, k, v = (p(y).unflatten(2, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))  # (B, h, L, d)
        x = x + self.out(attend(q, k, v, bias).transpose(1, 2).flatten(2))
        y = self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))  # (B, L, D)
        out: Tensor = x + y
        return out


class TextEncoder(nn.Module):
    """Token and position embeddings, blocks, a final norm."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab, config.width)
        self.positions = nn.Parameter(nn.init.normal_(torch.empty(config.length, config.width), std=0.02))
        self.blocks = nn.ModuleList(TextBlock(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (B, L) integers, mask (B, L) with 1 = token -> embeddings (B, L, D)."""
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]  # (B, L, D)
        bias = ((1.0 - mask.to(x.dtype)) * MASKED)[:, None, None, :]  # (B, 1, 1, L)
        for block in self.blocks:
            x = block(x, bias)
        embeddings: Tensor = self.norm(x)
        return embeddings
