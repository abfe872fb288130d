"""Text encoders of transformers in the channels layout: hidden states (1, D, 1, L), projections as 1x1 convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snapgen_deploy.models.attention import MASKED
from snapgen_deploy.models.library_text import Encoded, LibraryText, cut_embeddings
from snapgen_deploy.sparse import fold
from snapgen_deploy.sparse.channels_forms import equal_parts, rotated_channels
from snapgen_deploy.sparse.channels_layers import ChannelsNorm
from snapgen_deploy.sparse.geometry import Heads
from snapgen_deploy.sparse.library_parts import (
    LayerParts,
    LibraryLayer,
    NormParts,
    PoolParts,
    RotaryTable,
    TextEnd,
    in_half,
    parts_of,
)
from snapgen_deploy.sparse.library_token import token_activation


def norm_over_channels(parts: NormParts, axis: int = 1, scale: float = 1.0) -> ChannelsNorm:
    """A norm over the channels, axis 1 of (1, D, 1, L) or axis 2 of (1, h, d, L); its result times `scale`."""
    shape = (-1, 1, 1) if axis == 1 else (-1, 1)
    bias = None if parts.bias is None else (parts.bias * scale).view(shape)
    return ChannelsNorm(axis, parts.eps, (parts.weight * scale).view(shape), bias, centred=not parts.centred)


class ChannelsLibraryLayer(LibraryLayer):
    """One layer on (1, D, 1, L): x (1, D, 1, L), bias (1, 1 or h, L keys, L queries) -> (1, D, 1, L)."""

    def __init__(self, parts: LayerParts, activation: str, form: str) -> None:
        super().__init__()
        self.heads, self.cap, self.form, self.factor = parts.heads, parts.cap, form, parts.factor
        self.act = token_activation(activation, "native")
        self.q, self.k, self.v, self.out, self.up, self.down = (
            fold.pointwise(p.weight, p.bias) for p in (parts.q, parts.k, parts.v, parts.out, parts.up, parts.down)
        )
        self.gate = None if parts.gate is None else fold.pointwise(parts.gate.weight, parts.gate.bias)
        self.norm1, self.norm2 = norm_over_channels(parts.norm1), norm_over_channels(parts.norm2)
        self.after1, self.after2 = (None if p is None else norm_over_channels(p) for p in (parts.after1, parts.after2))
        self.q_norm = None if parts.q_norm is None else norm_over_channels(parts.q_norm, 2, parts.scale)
        self.k_norm = None if parts.k_norm is None else norm_over_channels(parts.k_norm, 2)
        self.scale = parts.scale if parts.q_norm is None else 1.0

    def attention(self, x: Tensor, bias: Tensor, rope: RotaryTable | None) -> Tensor:
        """(1, D, 1, L) -> (1, h*d, 1, L)."""
        q, k = self._turned(self.q(x), self.q_norm, rope), self._turned(self.k(x), self.k_norm, rope)
        if self.scale != 1.0:
            q = q * self.scale
        attend = _batched if self.form == "batched" else _per_head
        return attend(q, k, self.v(x), bias, self.heads, self.cap)

    def _turned(self, x: Tensor, norm: ChannelsNorm | None, rope: RotaryTable | None) -> Tensor:
        """Norm and rotary positions of each head: (1, h*d, 1, L) -> (1, h*d, 1, L)."""
        if norm is None and rope is None:
            return x
        y = x.reshape(1, -1, self.heads.dim, x.shape[3])  # (1, h, d, L)
        if norm is not None:
            y = norm(y)
        if rope is not None:
            y = rotated_channels(y, rope)
        return y.reshape(x.shape)


class ChannelsPool(nn.Module):
    """The pooled vector of hidden states (1, D, 1, L)."""

    def __init__(self, parts: PoolParts, length: int) -> None:
        super().__init__()
        self.end, self.norm = TextEnd(parts.end, length), norm_over_channels(parts.norm)
        self.projection = None if parts.projection is None else fold.pointwise(parts.projection.weight, None)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x (1, D, 1, L), tokens (1, L) -> (1, P)."""
        chosen = (x * self.end(tokens).reshape(1, 1, 1, -1)).sum(3, keepdim=True)  # (1, D, 1, 1): the others are zero
        y: Tensor = self.norm(chosen)
        return (y if self.projection is None else self.projection(y)).reshape(1, -1)


class ChannelsLibraryText(nn.Module):
    """`models.LibraryText` for the configured length and batch 1."""

    def __init__(self, source: LibraryText, form: str) -> None:
        super().__init__()
        parts = in_half(parts_of(source))
        self.undone = parts.undone
        self.depth, self.pool = parts.depth, None if parts.pool is None else ChannelsPool(parts.pool, source.config.length)
        self.config, self.settings, self.tokens, self.scale = source.config, source.settings, parts.tokens, parts.scale
        self.layers = nn.ModuleList(ChannelsLibraryLayer(layer, parts.activation, form) for layer in parts.layers)
        self.norm = None if parts.norm is None else norm_over_channels(parts.norm)
        self.register_buffer("positions", parts.positions)
        self.order = tuple(layer.kind for layer in parts.layers)
        self.kinds, self.rotary = tuple(parts.bias), bool(parts.ropes)
        for kind, bias in parts.bias.items():
            self.register_buffer(f"bias_{kind}", bias.transpose(1, 2)[None].contiguous())  # (1, 1 or h, keys, queries)
        for kind, (cos, sin) in parts.ropes.items():
            self.register_buffer(f"cos_{kind}", cos.T.contiguous())  # (d, L)
            self.register_buffer(f"sin_{kind}", sin.T.contiguous())

    def forward(self, tokens: Tensor, mask: Tensor) -> Encoded:
        """tokens (1, L) int32, mask (1, L) with 1 = token -> embeddings (1, L - dropped, D), pooled vector (1, P)."""
        x = self.tokens(tokens)  # (1, L, D)
        if self.scale != 1.0:
            x = x * self.scale
        if self.positions is not None:
            x = x + self.positions
        _, length, dim = x.shape
        x = x.transpose(1, 2).reshape(1, dim, 1, length)
        padding = ((mask - 1.0) * -MASKED).reshape(1, 1, length, 1)
        bias = {kind: getattr(self, f"bias_{kind}") + padding for kind in self.kinds}
        states = [x]
        for layer, kind in zip(self.layers, self.order, strict=True):
            states.append(layer(states[-1], bias[kind], self.rope(kind)))
        x = states[self.depth] if self.undone == 1.0 else states[self.depth] * self.undone
        x = x if self.norm is None else self.norm(x)
        x = cut_embeddings(x.reshape(1, dim, length).transpose(1, 2), mask, self.config, self.settings)
        return x if self.pool is None else (x, self.pool(states[-1], tokens))

    def rope(self, kind: str) -> RotaryTable | None:
        """The rotary table (d, L) of a kind of layers."""
        return (getattr(self, f"cos_{kind}"), getattr(self, f"sin_{kind}")) if self.rotary else None


def _capped(scores: Tensor, cap: float | None) -> Tensor:
    return scores if cap is None else (scores * (1.0 / cap)).tanh() * cap


def _per_head(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, heads: Heads, cap: float | None) -> Tensor:
    """One pair of products per query head, on channel slices (split einsum)."""
    queries, values = equal_parts(q, heads.dim, 1), equal_parts(v, heads.dim, 1)  # (1, d, 1, L) each
    keys = equal_parts(k.permute(0, 3, 2, 1), heads.dim, 3)  # (1, L, 1, d) each
    parts = []
    shared = bias.shape[1] == 1
    flat = bias.reshape(1, bias.shape[2], 1, bias.shape[3]) if shared else None  # (1, keys, 1, queries)
    for i, query in enumerate(queries):
        j = i // heads.group
        scores = torch.einsum("bkhc,bchq->bkhq", keys[j], query)  # (1, keys, 1, queries)
        own = bias.narrow(1, i, 1).reshape(1, bias.shape[2], 1, bias.shape[3]) if flat is None else flat
        weights = (_capped(scores, cap) + own).softmax(1)
        parts.append(torch.einsum("bchk,bkhq->bchq", values[j], weights))  # (1, d, 1, queries)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _batched(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, heads: Heads, cap: float | None) -> Tensor:
    """All heads in one pair of products; those of a group are folded into the batch of the query heads."""
    length, group = q.shape[3], heads.group
    keys, values = (x.reshape(heads.keys, heads.dim, length) for x in (k, v))
    if group > 1:
        keys, values = (torch.cat([x.narrow(0, i // group, 1) for i in range(heads.queries)]) for x in (keys, values))
    keys, values = keys.reshape(1, heads.queries, heads.dim, length), values.reshape(1, heads.queries, heads.dim, length)
    scores = torch.matmul(keys.transpose(2, 3), q.reshape(keys.shape))  # (1, h, keys, queries)
    mixed = torch.matmul(values, (_capped(scores, cap) + bias).softmax(2))  # (1, h, d, queries)
    return mixed.reshape(q.shape)
