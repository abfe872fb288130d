"""Layers of the token layout: hidden states (B, N, D), heads (B*h, N, d); every tensor has rank <= 4.

The operations are those that ExecuTorch's XNNPACK partitioner takes (read from executorch 1.4.1): linear, bmm, softmax over the
last axis, slices, concatenations, permutes, views and element-wise ones. A LayerNorm's mean over channels is a product with a
constant column of 1/D, because the partitioner takes `mean` only over the two spatial axes of an image, which would cost
two transposes. It is a `bmm` and not a `linear`, so that no weight quantiser takes it for a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.models.attention import AdaptiveSparseSelfAttention, CrossAttention, FeedForward, SelfAttention
from snapgen_deploy.sparse import fold
from snapgen_deploy.sparse.forms import Kernel, dense

OpForm = Literal["spelled", "half", "native"]
OP_FORMS: tuple[OpForm, ...] = get_args(OpForm)
Grid = tuple[int, int]


def _gelu_spelled(x: Tensor) -> Tensor:
    """x * sigmoid(2 * sqrt(2/pi) * (x + 0.044715 x^3)), the tanh approximation since (1 + tanh z) / 2 = sigmoid(2 z)."""
    slope = 2.0 * math.sqrt(2.0 / math.pi)
    return x * (x * (x * x * (0.044715 * slope) + slope)).sigmoid()


def _gelu_native(x: Tensor) -> Tensor:
    """The tanh approximation as one operation."""
    return F.gelu(x, approximate="tanh")


# XNNPACK (executorch 1.4.1) takes `gelu` but drops `approximate`: it computes the erf form, 1.5e-4 away (measured).
# Where its cube overflows half precision, the spelled form's sigmoid is 1 or 0, as it should be.
GELUS: Mapping[OpForm, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"spelled": _gelu_spelled, "half": _gelu_spelled, "native": _gelu_native}
)


class TokenNorm(nn.Module):
    """LayerNorm over the last axis of (B, N, D), with optional weight and bias (D,).

    `spelled` writes it in element-wise operations and products; `native` is one operation, for runtimes that have it fused.
    `half` is spelled so that half precision cannot overflow, which c^2 does from |c| = 256 on (c: x less its mean): with
    m = max(8 mean|c|, 1e-3) and y = c / m it is y / sqrt(mean(y^2) + eps/m^2), exact for any m > 0. |y| <= D/8, and since the
    root of a mean square is at least the mean, mean(y^2) >= 1/64 wherever m is not the 1e-3.
    """

    average: Tensor
    root: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self, batch: int, dim: int, eps: float, ops: OpForm, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self.dim, self.eps, self.form = dim, eps, ops
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        if ops != "native":
            self.register_buffer("average", torch.full((batch, dim, 1), 1.0 / dim))
        if ops == "half":
            self.register_buffer("root", torch.full((1, 1, 1), math.sqrt(eps)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        if self.form == "native":
            return F.layer_norm(x, (self.dim,), self.weight, self.bias, self.eps)
        x = x - torch.bmm(x, self.average)  # (B, N, D)
        return self.scaled(x)

    def scaled(self, x: Tensor) -> Tensor:
        """The rest of the norm for x (B, N, D) whose mean over D is zero already."""
        if self.form == "native":
            return self.forward(x)
        eps: float | Tensor = self.eps
        if self.form == "half":
            m = (torch.bmm(x.abs(), self.average) * 8.0).clamp(min=1e-3)  # (B, N, 1)
            x, root = x / m, self.root / m
            eps = root * root
        variance = torch.bmm(x * x, self.average)  # (B, N, 1)
        x = x * (variance + eps).rsqrt()  # (B, N, D)
        if self.weight is not None:
            x = x * self.weight
        if self.bias is not None:
            x = x + self.bias
        return x


def split_heads(x: Tensor, dim: int) -> Tensor:
    """(B, N, h*d) -> (B*h, N, d)."""
    batch, tokens, _ = x.shape
    if batch == 1:  # two nodes less
        return x.reshape(tokens, -1, dim).transpose(0, 1)
    return x.reshape(batch, tokens, -1, dim).transpose(1, 2).reshape(-1, tokens, dim)


def merge_heads(x: Tensor, batch: int) -> Tensor:
    """(B*h, N, d) -> (B, N, h*d)."""
    _, tokens, dim = x.shape
    if batch == 1:
        return x.transpose(0, 1).reshape(1, tokens, -1)
    return x.reshape(batch, -1, tokens, dim).transpose(1, 2).reshape(batch, tokens, -1)


def rotate_tokens(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions; x (B*h, N, d), rope: C and S (N, d) of `fold.rope_constants`."""
    half = x.shape[2] // 2
    swapped = torch.cat([x.narrow(2, half, half), x.narrow(2, 0, half)], dim=2)  # (B*h, N, d)
    return x * rope[0] + swapped * rope[1]


class TokenSelfAttention(nn.Module):
    """`models.SelfAttention` with 1/sqrt(d) folded into the norm of q, and the norms' centring into the projections.

    With `keep_weights` the projections keep their tensors, and the norms do the centring.
    """

    def __init__(self, source: SelfAttention, batch: int, ops: OpForm, keep_weights: bool = False) -> None:
        super().__init__()
        self.batch, self.dim, self.centred = batch, source.head_dim, not keep_weights
        self.q, self.k = (fold.linear_around(*fold.centred(p, self.dim)) if self.centred else p for p in (source.q, source.k))
        self.v, self.out = source.v, source.out
        scale = self.dim**-0.5
        q_norm, k_norm = source.q_norm, source.k_norm
        self.q_norm = TokenNorm(
            batch * source.heads, self.dim, q_norm.eps, ops, q_norm.weight.detach() * scale, q_norm.bias.detach() * scale
        )
        self.k_norm = TokenNorm(
            batch * source.kv_heads, self.dim, k_norm.eps, ops, k_norm.weight.detach(), k_norm.bias.detach()
        )

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, N, D) -> q (B*h, N, d) scaled, k and v (B*h_kv, N, d)."""
        q = rotate_tokens(self._normed(self.q_norm, self.q(x)), rope)
        k = rotate_tokens(self._normed(self.k_norm, self.k(x)), rope)
        return q, k, split_heads(self.v(x), self.dim)

    def _normed(self, norm: TokenNorm, x: Tensor) -> Tensor:
        """(B, N, h*d) -> (B*h, N, d)."""
        x = split_heads(x, self.dim)
        return norm.scaled(x) if self.centred else norm(x)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        q, k, v = self.project(x, rope)
        merged: Tensor = self.out(merge_heads(dense(q, k.transpose(1, 2), v), self.batch))
        return merged


class TokenCompress(nn.Module):
    """The depthwise 2x2, stride-2 convolution of ASSA on heads (B*h_kv, H*W, d), without leaving the token layout.

    Each pair of rows and each pair of columns is a contiguous slice of a view: four products with constants and their sum.
    """

    upper: Tensor
    lower: Tensor
    bias: Tensor

    def __init__(self, source: nn.Conv2d, batch: int, dim: int, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        weight = source.weight.detach()[:, 0].view(-1, dim, 2, 2)  # (h_kv, d, row, column)
        rows = weight.permute(2, 0, 3, 1).reshape(2, -1, 1, 2 * dim).repeat(1, batch, 1, 1)  # (row, B*h_kv, 1, 2d)
        assert source.bias is not None  # `models` always builds it with one
        self.register_buffer("upper", rows[0].contiguous())
        self.register_buffer("lower", rows[1].contiguous())
        self.register_buffer("bias", source.bias.detach().view(-1, 1, dim).repeat(batch, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B*h_kv, H*W, d) -> (B*h_kv, H/2*W/2, d)."""
        (rows, cols), (heads, _, dim) = self.grid, x.shape
        line = cols * dim
        pairs = x.reshape(heads, rows // 2, 2 * line)  # (B*h_kv, H/2, 2*W*d)
        upper = pairs.narrow(2, 0, line).reshape(heads, -1, 2 * dim)  # (B*h_kv, H/2*W/2, 2d)
        lower = pairs.narrow(2, line, line).reshape(heads, -1, 2 * dim)
        summed = upper * self.upper + lower * self.lower  # (B*h_kv, H/2*W/2, 2d)
        return summed.narrow(2, 0, dim) + summed.narrow(2, dim, dim) + self.bias


class TokenSparseAttention(TokenSelfAttention):
    """`models.AdaptiveSparseSelfAttention` with a kernel form for its local branch."""

    def __init__(
        self,
        source: AdaptiveSparseSelfAttention,
        batch: int,
        ops: OpForm,
        grid: Grid,
        kernel: Kernel,
        keep_weights: bool = False,
    ) -> None:
        super().__init__(source, batch, ops, keep_weights)
        self.blocks, self.radius, self.kernel = source.blocks, source.radius, kernel
        self.k_compress = TokenCompress(source.k_compress, batch, self.dim, grid)
        self.v_compress = TokenCompress(source.v_compress, batch, self.dim, grid)
        self.gate = source.gate

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        q, k, v = self.project(x, rope)
        far = dense(q, self.k_compress(k).transpose(1, 2), self.v_compress(v))  # (B*h, N, d)
        near = self.kernel(q, k, v, self.blocks, self.radius)  # (B*h, N, d)
        g = split_heads(self.gate(x).sigmoid(), 1)  # (B*h, N, 1)
        merged: Tensor = self.out(merge_heads(near + g * (far - near), self.batch))
        return merged


class TokenCrossAttention(nn.Module):
    """`models.CrossAttention`; the scale goes to the few text keys instead of the many image queries."""

    def __init__(self, source: CrossAttention, batch: int) -> None:
        super().__init__()
        self.batch, self.heads, self.dim = batch, source.heads, source.head_dim
        self.q, self.k, self.v, self.out = source.q, source.k, source.v, source.out

    def forward(self, x: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        """x (B, N, D), text (B, L, T), bias (B*h, 1, L), or (1, 1, L) where B = 1 -> (B, N, D)."""
        q = split_heads(self.q(x), self.dim)  # (B*h, N, d)
        k = split_heads(self.k(text) * self.dim**-0.5, self.dim)  # (B*h, L, d)
        v = split_heads(self.v(text), self.dim)  # (B*h, L, d)
        merged: Tensor = self.out(merge_heads(dense(q, k.transpose(1, 2), v, bias), self.batch))
        return merged


class TokenFeedForward(nn.Module):
    """`models.FeedForward`."""

    def __init__(self, source: FeedForward, ops: OpForm) -> None:
        super().__init__()
        self.up, self.down, self.gelu = source.up, source.down, GELUS[ops]

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        y: Tensor = self.down(self.gelu(self.up(x)))
        return y
