"""Layers of the channels layout: hidden states (B, D, 1, N), projections as 1x1 convolutions; every tensor has rank <= 4.

Meant for half precision on the Neural Engine. Tokens stay on the last axis from the patch convolution to the unpatch one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.models.attention import AdaptiveSparseSelfAttention, CrossAttention, SelfAttention
from snapgen_deploy.sparse import fold
from snapgen_deploy.sparse.channels_forms import ChannelsForm, rotated_channels
from snapgen_deploy.sparse.geometry import Heads

MapGrid = tuple[int, int]


class ChannelsNorm(nn.Module):
    """LayerNorm over one axis, in a form that half precision cannot overflow.

    With c = x - mean(x) and m = max(max|c|, 1e-3): LN(x) = y / sqrt(mean(y^2) + eps/m^2), y = c / m. This is exact for any
    m > 0, and |y| <= 1; written plainly, c^2 overflows half precision from |c| = 256 on, and a constant input with an eps
    that is flushed to zero gives NaN: eps is below half precision's normal numbers, its root is not.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self, axis: int, eps: float, weight: Tensor | None = None, bias: Tensor | None = None, *, centred: bool = False
    ) -> None:
        super().__init__()
        self.axis, self.eps, self.centred = axis, eps, centred
        self.register_buffer("weight", weight)  # of a shape that broadcasts
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape of rank 4, unchanged."""
        c = x if self.centred else x - x.mean(self.axis, keepdim=True)
        inverse = c.abs().amax(self.axis, keepdim=True).clamp(min=1e-3).reciprocal()  # size 1 along the axis
        y = c * inverse
        mean_square = (y * y).mean(self.axis, keepdim=True)
        root = math.sqrt(self.eps) * inverse
        y = y * (mean_square + root * root).rsqrt()
        if self.weight is not None:
            y = y * self.weight
        if self.bias is not None:
            y = y + self.bias
        return y


class ChannelsSelfAttention(nn.Module):
    """`models.SelfAttention`. Data movement of its own: 4 reshapes (q and k to heads for the norm, and back).

    The form adds: `per_head` one transpose (keys); `loop` and `batched` one transpose and four reshapes.
    """

    def __init__(self, source: SelfAttention, form: ChannelsForm, keep_weights: bool = False) -> None:
        super().__init__()
        self.heads, self.form = Heads(source.heads, source.kv_heads, source.head_dim), form
        self.q, self.k = (
            fold.pointwise(*((p.weight, p.bias) if keep_weights else fold.centred(p, source.head_dim)))
            for p in (source.q, source.k)
        )
        self.v = fold.pointwise(source.v.weight, source.v.bias)
        self.out = fold.pointwise(source.out.weight, source.out.bias)
        self.q_norm = self._norm(source.q_norm, source.head_dim**-0.5, centred=not keep_weights)
        self.k_norm = self._norm(source.k_norm, 1.0, centred=not keep_weights)

    @staticmethod
    def _norm(source: nn.LayerNorm, scale: float, *, centred: bool) -> ChannelsNorm:
        """The norm over a head's channels, of projections that are `centred` already or not, times `scale`."""
        weight, bias = (t.detach().view(-1, 1) * scale for t in (source.weight, source.bias))  # (d, 1)
        return ChannelsNorm(2, source.eps, weight, bias, centred=centred)

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, D, 1, N) -> q (B, h*d, 1, N) scaled, k and v (B, h_kv*d, 1, N)."""
        q, k = self.q(x), self.k(x)
        batch, _, _, tokens = x.shape
        q = rotated_channels(self.q_norm(q.reshape(batch, self.heads.queries, self.heads.dim, tokens)), rope).reshape(q.shape)
        k = rotated_channels(self.k_norm(k.reshape(batch, self.heads.keys, self.heads.dim, tokens)), rope).reshape(k.shape)
        return q, k, self.v(x)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """(B, D, 1, N) -> (B, D, 1, N)."""
        merged: Tensor = self.out(self.form.dense(*self.project(x, rope), self.heads))
        return merged


class ChannelsSparseAttention(ChannelsSelfAttention):
    """`models.AdaptiveSparseSelfAttention`. Data movement of its own: 8 reshapes (4 as above; k and v to a map, and back).

    The form adds: `per_head` two transposes (keys of both branches); `loop` two transposes and eight reshapes.
    """

    spread: Tensor

    def __init__(
        self, source: AdaptiveSparseSelfAttention, form: ChannelsForm, grid: MapGrid, keep_weights: bool = False
    ) -> None:
        super().__init__(source, form, keep_weights)
        self.blocks, self.radius, self.grid = source.blocks, source.radius, grid
        self.k_compress, self.v_compress = source.k_compress, source.v_compress
        self.gate = fold.pointwise(source.gate.weight, source.gate.bias)
        self.register_buffer("spread", torch.ones(self.heads.queries * self.heads.dim, 1, 1, 1))

    def compress(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """(B, h_kv*d, 1, H*W) -> (B, h_kv*d, 1, H/2*W/2)."""
        small: Tensor = conv(x.reshape(*x.shape[:2], *self.grid))  # (B, h_kv*d, H/2, W/2)
        return small.reshape(*x.shape[:2], 1, -1)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """(B, D, 1, N) -> (B, D, 1, N)."""
        q, k, v = self.project(x, rope)
        far = self.form.dense(q, self.compress(self.k_compress, k), self.compress(self.v_compress, v), self.heads)
        near = self.form.near(q, k, v, self.heads, self.blocks, self.radius)  # (B, h*d, 1, N)
        # A grouped convolution with ones copies a head's gate to its channels; a broadcast would need three reshapes.
        g = F.conv2d(self.gate(x).sigmoid(), self.spread, groups=self.heads.queries)  # (B, h*d, 1, N)
        merged: Tensor = self.out(near + g * (far - near))
        return merged


class ChannelsCrossAttention(nn.Module):
    """`models.CrossAttention`; the scale goes to the few text keys instead of the many image queries."""

    def __init__(self, source: CrossAttention, form: ChannelsForm) -> None:
        super().__init__()
        self.heads, self.form = Heads(source.heads, source.heads, source.head_dim), form
        self.q, self.k, self.v, self.out = (
            fold.pointwise(p.weight, p.bias) for p in (source.q, source.k, source.v, source.out)
        )

    def forward(self, x: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        """x (B, D, 1, N), text (B, T, 1, L), bias (B, L, 1, 1) -> (B, D, 1, N)."""
        k = self.k(text) * self.heads.dim**-0.5
        merged: Tensor = self.out(self.form.dense(self.q(x), k, self.v(text), self.heads, bias))
        return merged


class ChannelsMLP(nn.Module):
    """Two projections with a tanh-approximated GELU between them: `models.FeedForward` and `models.TextProjection`."""

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.first, self.second = fold.pointwise(first.weight, first.bias), fold.pointwise(second.weight, second.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, 1, N) -> (B, out, 1, N)."""
        y: Tensor = self.second(F.gelu(self.first(x), approximate="tanh"))
        return y
