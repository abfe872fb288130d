"""Attention of the reference student: full, cross and Adaptive Sparse Self-Attention (ASSA).

Written for reading, not for speed: every exported form is checked against these lines.
Source: SnapGen++, arXiv 2601.08303, section 3; what the paper leaves open is marked "our convention".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Added to the scores of masked text tokens. Finite, so that fp16 on a phone neither overflows nor makes a NaN.
MASKED = -1.0e4

LocalAttention = Callable[[Tensor, Tensor, Tensor, int, int], Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v; q (B, h, N, d), k and v (B, h/g, M, d), result (B, h, N, d).

    Grouped queries: query head i reads key/value head i // g.
    """
    group = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(group, dim=1)  # (B, h, M, d)
    v = v.repeat_interleave(group, dim=1)  # (B, h, M, d)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # (B, h, N, M)
    if bias is not None:
        scores = scores + bias
    mixed: Tensor = scores.softmax(-1) @ v  # (B, h, N, d)
    return mixed


def blockwise_neighborhood_attention(q: Tensor, k: Tensor, v: Tensor, blocks: int, radius: int) -> Tensor:
    """Local branch: the N tokens fall into `blocks` runs of N/blocks; run b attends to runs b-radius ... b+radius.

    q (B, h, N, d), k and v (B, h/g, N, d), result (B, h, N, d). Runs beyond either end are clipped: no wrap, no padding.

    Raises:
        ValueError: if `blocks` does not divide N.
    """
    tokens = q.shape[2]
    if blocks < 1 or tokens % blocks:
        raise ValueError(f"{tokens} tokens do not divide into {blocks} blocks; choose a divisor of {tokens}")
    run = tokens // blocks
    out = []
    for b in range(blocks):
        first, last = max(b - radius, 0), min(b + radius + 1, blocks)
        near = slice(first * run, last * run)
        out.append(attend(q[:, :, b * run : (b + 1) * run], k[:, :, near], v[:, :, near]))  # (B, h, N/blocks, d)
    return torch.cat(out, dim=2)  # (B, h, N, d)


def rope_table(rows: int, cols: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (rows*cols, head_dim/2) of axial rotary positions: first half rows, second half columns."""
    frequencies = theta ** (-torch.arange(0, head_dim // 2, 2, dtype=torch.float32) / (head_dim // 2))  # (head_dim/4,)
    y = torch.arange(rows, dtype=torch.float32)[:, None, None] * frequencies  # (rows, 1, head_dim/4)
    x = torch.arange(cols, dtype=torch.float32)[None, :, None] * frequencies  # (1, cols, head_dim/4)
    angles = torch.cat([y.expand(-1, cols, -1), x.expand(rows, -1, -1)], dim=-1)  # (rows, cols, head_dim/2)
    angles = angles.reshape(rows * cols, head_dim // 2)
    return angles.cos(), angles.sin()


def position_table(rows: int, cols: int, hidden: int, kept: int) -> Tensor:
    """Fixed absolute positions (rows*cols, kept): the first `kept` channels of a sine-cosine table of width `hidden`.

    PixArt-alpha's table with interleaved channels (sin y, cos y, sin x, cos x per frequency), so that a slice has both axes.
    """
    frequencies = 10000.0 ** (-torch.arange(0, hidden, 4, dtype=torch.float32) / hidden)  # (hidden/4,)
    y = (torch.arange(rows, dtype=torch.float32)[:, None, None] * frequencies).expand(-1, cols, -1)  # (rows, cols, hidden/4)
    x = (torch.arange(cols, dtype=torch.float32)[None, :, None] * frequencies).expand(rows, -1, -1)  # (rows, cols, hidden/4)
    table = torch.stack([y.sin(), y.cos(), x.sin(), x.cos()], dim=-1)  # (rows, cols, hidden/4, 4)
    return table.reshape(rows * cols, -1)[:, :kept]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: channel i is paired with channel i + d/2; x (B, h, N, d), cos and sin (N, d/2)."""
    a, b = x.chunk(2, dim=-1)  # (B, h, N, d/2) each
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)  # (B, h, N, d)


class SelfAttention(nn.Module):
    """Grouped-query self-attention with LayerNorm and rotary positions on q and k (Middle stage)."""

    def __init__(self, hidden: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.q = nn.Linear(hidden, heads * head_dim)
        self.k = nn.Linear(hidden, kv_heads * head_dim)
        self.v = nn.Linear(hidden, kv_heads * head_dim)
        self.out = nn.Linear(heads * head_dim, hidden)
        self.q_norm = nn.LayerNorm(head_dim, eps=1e-6)
        self.k_norm = nn.LayerNorm(head_dim, eps=1e-6)

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, N, D) -> q (B, h, N, d), k and v (B, h_kv, N, d)."""
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, self.heads, self.head_dim).transpose(1, 2)  # (B, h, N, d)
        k = self.k(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)  # (B, h_kv, N, d)
        v = self.v(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)  # (B, h_kv, N, d)
        return rotate(self.q_norm(q), *rope), rotate(self.k_norm(k), *rope), v

    def merge(self, heads: Tensor) -> Tensor:
        """(B, h, N, d) -> (B, N, D)."""
        merged: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return merged

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], grid: tuple[int, int]) -> Tensor:
        """x (B, H*W, D) -> (B, H*W, D); `grid` is unused here and keeps one signature with ASSA."""
        return self.merge(attend(*self.project(x, rope)))


class AdaptiveSparseSelfAttention(SelfAttention):
    """ASSA: per head, g * global + (1 - g) * local, with g = sigmoid(Linear(x)).

    Global: keys and values compressed by a 2x2, stride-2 convolution on the H x W map. It is depthwise, which with the
    published widths gives the published parameter counts; a dense one does not (our convention). That g weighs the
    global side is our convention too.
    """

    def __init__(self, hidden: int, heads: int, kv_heads: int, head_dim: int, blocks: int, radius: int) -> None:
        super().__init__(hidden, heads, kv_heads, head_dim)
        self.blocks, self.radius = blocks, radius
        kv = kv_heads * head_dim
        self.k_compress = nn.Conv2d(kv, kv, 2, stride=2, groups=kv)
        self.v_compress = nn.Conv2d(kv, kv, 2, stride=2, groups=kv)
        self.gate = nn.Linear(hidden, heads)
        self.local: LocalAttention = blockwise_neighborhood_attention

    def compress(self, conv: nn.Conv2d, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """x (B, h_kv, H*W, d) -> (B, h_kv, H/2*W/2, d)."""
        batch, heads, _, dim = x.shape
        image = x.transpose(2, 3).reshape(batch, heads * dim, *grid)  # (B, h_kv*d, H, W)
        small: Tensor = conv(image)  # (B, h_kv*d, H/2, W/2)
        return small.reshape(batch, heads, dim, -1).transpose(2, 3)  # (B, h_kv, H/2*W/2, d)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], grid: tuple[int, int]) -> Tensor:
        """x (B, H*W, D) -> (B, H*W, D); H and W must be even."""
        q, k, v = self.project(x, rope)
        far = attend(q, self.compress(self.k_compress, k, grid), self.compress(self.v_compress, v, grid))  # (B, h, N, d)
        near = self.local(q, k, v, self.blocks, self.radius)  # (B, h, N, d)
        g = self.gate(x).sigmoid().transpose(1, 2)[..., None]  # (B, h, N, 1)
        return self.merge(g * far + (1 - g) * near)


class CrossAttention(nn.Module):
    """Attention of image tokens to text tokens; its inner width does not shrink with the network's."""

    def __init__(self, hidden: int, text_width: int, inner: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = inner // head_dim, head_dim
        self.q = nn.Linear(hidden, inner)
        self.k = nn.Linear(text_width, inner)
        self.v = nn.Linear(text_width, inner)
        self.out = nn.Linear(inner, hidden)

    def forward(self, x: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        """x (B, N, D), text (B, L, T), bias (B, 1, 1, L) added to the scores -> (B, N, D)."""
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, self.heads, self.head_dim).transpose(1, 2)  # (B, h, N, d)
        k = self.k(text).view(batch, -1, self.heads, self.head_dim).transpose(1, 2)  # (B, h, L, d)
        v = self.v(text).view(batch, -1, self.heads, self.head_dim).transpose(1, 2)  # (B, h, L, d)
        merged: Tensor = self.out(attend(q, k, v, bias).transpose(1, 2).flatten(2))  # (B, N, D)
        return merged


class FeedForward(nn.Module):
    """Two projections with a tanh-approximated GELU between them (PixArt-alpha's choice)."""

    def __init__(self, hidden: int, ratio: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, hidden * ratio)
        self.down = nn.Linear(hidden * ratio, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        y: Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))
        return y
