"""The network: patches, blocks of self-attention, cross-attention and feed-forward layers with AdaLN, patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Sinusoids(nn.Module):
    """Features of a timestep in 0 ... 1000, cosines first."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, count)."""
        half = self.count // 2
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device) / half)
        angles = t[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class Attention(nn.Module):
    """Of queries to keys, with RMSNorm of both."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(hidden, hidden), nn.Linear(hidden, 2 * hidden)
        self.q_norm, self.k_norm = nn.RMSNorm(hidden // heads, eps=1e-6), nn.RMSNorm(hidden // heads, eps=1e-6)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (B, N, D), context (B, L, D), bias (B, 1, 1, L) -> (B, N, D)."""
        q, k, v = (self._split(y) for y in (self.q(x), *self.kv(context).chunk(2, dim=-1)))
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, attn_mask=bias)
        return self.out(y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        batch, tokens, hidden = x.shape
        return x.view(batch, tokens, self.heads, hidden // self.heads).transpose(1, 2)


class Block(nn.Module):
    """One layer, shifted, scaled and gated by the time."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(hidden, elementwise_affine=False)
        self.attention, self.cross = Attention(hidden, heads), Attention(hidden, heads)
        self.ffn = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(approximate="tanh"), nn.Linear(4 * hidden, hidden))
        self.modulation = nn.Linear(hidden, 6 * hidden)

    def forward(self, x: Tensor, time: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        """x (B, N, D), time (B, D), text (B, L, D) -> (B, N, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(time))[:, None].chunk(6, dim=-1)
        y = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attention(y, y)
        x = x + self.cross(x, text, bias)
        return x + gate2 * self.ffn(self.norm2(x) * (1 + scale2) + shift2)


class Postcard(nn.Module):
    """The velocity of a latent, which flow matching follows from noise to a picture."""

    def __init__(
        self, hidden: int = 64, depth: int = 2, heads: int = 4, channels: int = 4, text: int = 32, side: int = 8
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, hidden, 2, stride=2)
        self.positions = nn.Parameter(torch.randn(1, (side // 2) ** 2, hidden) * 0.02)
        self.sinusoids = Sinusoids(64)
        self.time = nn.Sequential(nn.Linear(64, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.text = nn.Linear(text, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden)
        self.unpatch = nn.ConvTranspose2d(hidden, channels, 2, stride=2)

    def forward(self, x: Tensor, t: Tensor, prompt: Tensor, prompt_mask: Tensor) -> Tensor:
        """x (B, C, h, w), t (B,), prompt (B, L, T), prompt_mask (B, L), 1 where there is a token -> (B, C, h, w)."""
        patches = self.patch(x)
        y = patches.flatten(2).transpose(1, 2) + self.positions
        time, text = self.time(self.sinusoids(t)), self.text(prompt)
        bias = ((prompt_mask - 1.0) * 1e4)[:, None, None]  # finite, so that half precision makes no NaN
        for block in self.blocks:
            y = block(y, time, text, bias)
        return self.unpatch(self.norm(y).transpose(1, 2).reshape(patches.shape))
