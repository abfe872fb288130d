"""Text encoders of transformers in the token layout: one delegate beside the lookup of the embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.models.attention import MASKED
from snapgen_deploy.models.library_text import Encoded, LibraryText, cut_embeddings
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
from snapgen_deploy.sparse.token_layers import GELUS, OpForm, TokenNorm, merge_heads, rotate_tokens, split_heads

_Activation = Callable[[Tensor], Tensor]


def token_activation(name: str, ops: OpForm) -> _Activation:
    """An activation of transformers by its name there."""
    found: Mapping[str, _Activation] = {
        "quick_gelu": lambda x: x * (x * 1.702).sigmoid(),
        "gelu": F.gelu,
        "gelu_new": GELUS[ops],
        "gelu_pytorch_tanh": GELUS[ops],
        "silu": lambda x: x * x.sigmoid(),
        "swish": lambda x: x * x.sigmoid(),
        "relu": F.relu,
    }
    return found[name]


class TokenRMSNorm(TokenNorm):
    """RMSNorm over the last axis: what a LayerNorm does once its mean is zero."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        if self.form != "native":
            return self.scaled(x)
        return F.rms_norm(x, (self.dim,), self.weight, self.eps)


class RecognisedRMSNorm(TokenRMSNorm):
    """The same, `native` as onnxruntime recognises it, and makes it one operation when it loads a file.

    For 14336 rows of 64 that took a third of the time of what PyTorch's exporter makes of `rms_norm` (onnxruntime 1.32).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        if self.form != "native" or self.weight is None:
            return super().forward(x)
        return x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * self.weight


def norm_over_tokens(parts: NormParts, batch: int, ops: OpForm, scale: float = 1.0) -> TokenNorm:
    """A norm of (B, N, D), its result times `scale`."""
    kind = TokenNorm if parts.centred else TokenRMSNorm
    bias = None if parts.bias is None else parts.bias * scale
    return kind(batch, parts.weight.shape[0], parts.eps, ops, parts.weight * scale, bias)


class TokenLibraryLayer(LibraryLayer):
    """One layer on (1, L, D): x (1, L, D), bias (1 or h_kv, g*L, L) -> (1, L, D)."""

    def __init__(self, parts: LayerParts, activation: str, ops: OpForm) -> None:
        super().__init__()
        self.heads, self.cap, self.factor = parts.heads, parts.cap, parts.factor
        self.act = token_activation(activation, ops)
        self.q, self.k, self.v, self.out = parts.q, parts.k, parts.v, parts.out
        self.gate, self.up, self.down = parts.gate, parts.up, parts.down
        self.norm1, self.norm2 = norm_over_tokens(parts.norm1, 1, ops), norm_over_tokens(parts.norm2, 1, ops)
        self.after1, self.after2 = (None if p is None else norm_over_tokens(p, 1, ops) for p in (parts.after1, parts.after2))
        heads, q_norm, k_norm = parts.heads, parts.q_norm, parts.k_norm
        self.q_norm = None if q_norm is None else norm_over_tokens(q_norm, heads.queries, ops, parts.scale)
        self.k_norm = None if k_norm is None else norm_over_tokens(k_norm, heads.keys, ops)
        self.scale = parts.scale if q_norm is None else 1.0

    def attention(self, x: Tensor, bias: Tensor, rope: RotaryTable | None) -> Tensor:
        """(1, L, D) -> (1, L, h*d)."""
        dim = self.heads.dim
        q, k, v = (split_heads(p(x), dim) for p in (self.q, self.k, self.v))  # (h, L, d), (h_kv, L, d) twice
        q, k = (y if norm is None else norm(y) for y, norm in ((q, self.q_norm), (k, self.k_norm)))
        if self.scale != 1.0:
            q = q * self.scale
        if rope is not None:
            q, k = rotate_tokens(q, rope), rotate_tokens(k, rope)
        rows = q if self.heads.group == 1 else q.reshape(self.heads.keys, -1, dim)  # (h_kv, g*L, d)
        scores = torch.bmm(rows, k.transpose(1, 2))  # (h_kv, g*L, L)
        if self.cap is not None:
            scores = (scores * (1.0 / self.cap)).tanh() * self.cap
        mixed = torch.bmm((scores + bias).softmax(-1), v)  # (h_kv, g*L, d)
        return merge_heads(mixed if self.heads.group == 1 else mixed.reshape(q.shape), 1)


class TokenPool(nn.Module):
    """The pooled vector of hidden states (1, L, D)."""

    def __init__(self, parts: PoolParts, length: int, ops: OpForm) -> None:
        super().__init__()
        self.end, self.projection = TextEnd(parts.end, length), parts.projection
        self.norm = norm_over_tokens(parts.norm, 1, ops)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x (1, L, D), tokens (1, L) -> (1, P)."""
        y: Tensor = self.norm(torch.bmm(self.end(tokens), x))  # (1, 1, D)
        return (y if self.projection is None else self.projection(y)).reshape(1, -1)


class TokenLibraryText(nn.Module):
    """`models.LibraryText` for the configured length and batch 1."""

    def __init__(self, source: LibraryText, ops: OpForm) -> None:
        super().__init__()
        parts = parts_of(source)
        parts = in_half(parts) if ops == "half" else parts
        self.undone = parts.undone
        self.depth, self.pool = parts.depth, None if parts.pool is None else TokenPool(parts.pool, source.config.length, ops)
        self.config, self.settings, self.tokens, self.scale = source.config, source.settings, parts.tokens, parts.scale
        self.layers = nn.ModuleList(TokenLibraryLayer(layer, parts.activation, ops) for layer in parts.layers)
        self.norm = None if parts.norm is None else norm_over_tokens(parts.norm, 1, ops)
        self.register_buffer("positions", parts.positions)
        self.order = tuple(layer.kind for layer in parts.layers)
        self.kinds, self.rotary = tuple(parts.bias), bool(parts.ropes)
        for kind, bias in parts.bias.items():
            group = next(layer.heads.group for layer in parts.layers if layer.kind == kind)
            self.register_buffer(f"bias_{kind}", bias.repeat(1, group, 1))  # (1 or h, g*L, L)
        for kind, (cos, sin) in parts.ropes.items():
            self.register_buffer(f"cos_{kind}", cos)
            self.register_buffer(f"sin_{kind}", sin)

    def forward(self, tokens: Tensor, mask: Tensor) -> Encoded:
        """tokens (1, L) int32, mask (1, L) with 1 = token -> embeddings (1, L - dropped, D), pooled vector (1, P)."""
        x = self.tokens(tokens)  # (1, L, D)
        if self.scale != 1.0:
            x = x * self.scale
        if self.positions is not None:
            x = x + self.positions
        padding = ((mask - 1.0) * -MASKED).reshape(1, 1, -1)  # (1, 1, L)
        bias = {kind: getattr(self, f"bias_{kind}") + padding for kind in self.kinds}
        states = [x]
        for layer, kind in zip(self.layers, self.order, strict=True):
            states.append(layer(states[-1], bias[kind], self.rope(kind)))
        x = states[self.depth] if self.undone == 1.0 else states[self.depth] * self.undone
        x = cut_embeddings(x if self.norm is None else self.norm(x), mask, self.config, self.settings)
        return x if self.pool is None else (x, self.pool(states[-1], tokens))

    def rope(self, kind: str) -> RotaryTable | None:
        """The rotary table of a kind of layers."""
        return (getattr(self, f"cos_{kind}"), getattr(self, f"sin_{kind}")) if self.rotary else None
