"""The layers of a transformer in each layout, made of the same parts: what a student of `diffusers` is written with.

token      hidden states (B, N, D), vectors (B, 1, D)
channels   hidden states (B, D, 1, N), vectors (B, D, 1, 1)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.attention import MASKED
from snapgen_deploy.sparse import fold
from snapgen_deploy.sparse.channels_forms import dense_per_head, dense_shared, equal_parts
from snapgen_deploy.sparse.channels_layers import ChannelsNorm
from snapgen_deploy.sparse.forms import dense
from snapgen_deploy.sparse.geometry import Heads
from snapgen_deploy.sparse.image_layers import LinearAttention
from snapgen_deploy.sparse.library_channels import norm_over_channels
from snapgen_deploy.sparse.library_parts import NormParts, RotaryTable
from snapgen_deploy.sparse.library_token import RecognisedRMSNorm, norm_over_tokens, token_activation
from snapgen_deploy.sparse.student_parts import AttentionParts, not_converted
from snapgen_deploy.sparse.token_layers import OpForm, TokenNorm, merge_heads, split_heads
from snapgen_deploy.sparse.token_student import TokenPatch, TokenUnpatch

_LEAST = 2.0**-24  # of a denominator, half precision's smallest number; of `half`, its smallest normal one
_LEAST_NORMAL = 2.0**-14
GELU_TANH = "gelu_pytorch_tanh"


class Forms(Protocol):
    """Layers in one layout, for one latent and batch."""

    def linear(self, source: nn.Linear) -> nn.Module:
        """A projection of hidden states."""

    def norm(self, parts: NormParts) -> nn.Module:
        """A norm over the channels of hidden states."""

    def activation(self, name: str) -> Callable[[Tensor], Tensor]:
        """An activation by its name in transformers."""

    def vector(self, x: Tensor) -> Tensor:
        """A vector (B, F) of the layout."""

    def projected(self, source: nn.Linear) -> nn.Module:
        """A projection of vectors."""

    def parts(self, x: Tensor, count: int) -> tuple[Tensor, ...]:
        """The parts of a vector, one after the other, ready to be multiplied with hidden states."""

    def table(self, rows: Tensor) -> Tensor:
        """A table (k, D) as a vector of k parts."""

    def tokens(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, L, T) as hidden states."""

    def bias(self, mask: Tensor, heads: int) -> Tensor:
        """What a mask (B, L) adds to scores."""

    def enter(self, conv: nn.Conv2d) -> nn.Module:
        """The patches of a latent as hidden states."""

    def positions(self, table: Tensor) -> Tensor:
        """A table (N, D) that is added to hidden states."""

    def leave(self, pixels: nn.Linear, patch: int) -> nn.Module:
        """Hidden states as the pixels of their patches, ordered (channel, row, column)."""

    def attention(self, parts: AttentionParts) -> nn.Module:
        """Called with hidden states, those that are attended to, and a bias or None."""

    def linear_attention(self, parts: AttentionParts) -> nn.Module:
        """Self-attention with ReLU in place of softmax."""

    def over_map(self, layers: nn.Module) -> nn.Module:
        """Layers over a map (B, D, H, W), from and to hidden states."""

    def joint(self, image: AttentionParts, text: AttentionParts | None) -> nn.Module:
        """Called with hidden states of image and text and with rotary tables; without `text` the second ones are not read."""

    def rotary(self, table: Tensor) -> Tensor:
        """A rotary table (N, d)."""

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Hidden states one after the other along their tokens."""

    def beside(self, parts: Sequence[Tensor]) -> Tensor:
        """Hidden states with the channels of all."""

    def some_tokens(self, x: Tensor, start: int, length: int) -> Tensor:
        """Some of the tokens."""

    @property
    def ops(self) -> OpForm:
        """In which operations norms are written."""

    def at(self, grid: tuple[int, int]) -> Forms:
        """The same on another map."""

    def of_map(self, x: Tensor) -> Tensor:
        """A map (B, C, H, W) as hidden states."""

    def to_map(self, x: Tensor) -> Tensor:
        """Hidden states as a map (B, C, H, W)."""


class TokenForms:
    """Of the token layout."""

    def __init__(self, grid: tuple[int, int], batch: int, ops: OpForm) -> None:
        self.grid, self.batch, self.ops = grid, batch, ops

    def linear(self, source: nn.Linear) -> nn.Module:
        """As it is."""
        return source

    def norm(self, parts: NormParts) -> nn.Module:
        """Over the last axis."""
        return _token_norm(parts, self.batch, self.ops)

    def activation(self, name: str) -> Callable[[Tensor], Tensor]:
        """In operations that delegates take."""
        return token_activation(name, self.ops)

    def vector(self, x: Tensor) -> Tensor:
        """(B, F) -> (B, F)."""
        return x

    def projected(self, source: nn.Linear) -> nn.Module:
        """As it is."""
        return source

    def parts(self, x: Tensor, count: int) -> tuple[Tensor, ...]:
        """(B, k*D) -> k times (B, 1, D)."""
        rows = x.reshape(x.shape[0], count, -1)
        return (rows,) if count == 1 else tuple(rows.narrow(1, i, 1) for i in range(count))

    def table(self, rows: Tensor) -> Tensor:
        """(k, D) -> (1, k*D)."""
        return rows.detach().reshape(1, -1)

    def tokens(self, embeddings: Tensor) -> Tensor:
        """(B, L, T) -> (B, L, T)."""
        return embeddings

    def bias(self, mask: Tensor, heads: int) -> Tensor:
        """(B, L) -> (B*h, 1, L), or (1, 1, L) where B = 1."""
        bias = ((mask - 1.0) * -MASKED).reshape(self.batch, 1, -1)
        return bias if self.batch == 1 else (bias * bias.new_ones(1, heads, 1)).reshape(self.batch * heads, 1, -1)

    def enter(self, conv: nn.Conv2d) -> nn.Module:
        """(B, C, h, w) -> (B, N, D)."""
        return TokenPatch(conv, self.grid)

    def positions(self, table: Tensor) -> Tensor:
        """(N, D) -> (1, N, D)."""
        return table[None].contiguous()

    def leave(self, pixels: nn.Linear, patch: int) -> nn.Module:
        """(B, N, D) -> (B, C, h, w)."""
        return TokenUnpatch(pixels, patch, self.grid)

    def attention(self, parts: AttentionParts) -> nn.Module:
        """On (B, N, D)."""
        return TokenAttention(parts, self.batch, self.ops)

    def linear_attention(self, parts: AttentionParts) -> nn.Module:
        """On (B, N, D)."""
        return TokenLinearAttention(parts, self.batch, self.grid[0] * self.grid[1], self.ops)

    def over_map(self, layers: nn.Module) -> nn.Module:
        """On (B, N, D)."""
        return TokensOverMap(layers, self.grid)

    def joint(self, image: AttentionParts, text: AttentionParts | None) -> nn.Module:
        """On (B, N, D)."""
        return TokenJoint(image, text, self.batch, self.ops)

    def rotary(self, table: Tensor) -> Tensor:
        """As it is."""
        return table

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """(B, N, D) each -> (B, sum of N, D)."""
        return parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)

    def beside(self, parts: Sequence[Tensor]) -> Tensor:
        """(B, N, D) each -> (B, N, sum of D)."""
        return torch.cat(list(parts), 2)

    def some_tokens(self, x: Tensor, start: int, length: int) -> Tensor:
        """(B, N, D) -> (B, length, D)."""
        return x.narrow(1, start, length)

    def at(self, grid: tuple[int, int]) -> TokenForms:
        """The same on another map."""
        return TokenForms(grid, self.batch, self.ops)

    def of_map(self, x: Tensor) -> Tensor:
        """Contiguous: a Linear on transposed tokens would come with an expansion that XNNPACK does not take."""
        return x.reshape(*x.shape[:2], -1).transpose(1, 2).contiguous()

    def to_map(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, D, H, W)."""
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *self.grid)


def _token_norm(parts: NormParts, rows: int, ops: OpForm, scale: float = 1.0) -> TokenNorm:
    """As `norm_over_tokens`, with RMSNorm in the form that onnxruntime recognises."""
    if parts.centred or parts.bias is not None:
        return norm_over_tokens(parts, rows, ops, scale)
    return RecognisedRMSNorm(rows, parts.weight.shape[0], parts.eps, ops, parts.weight * scale)


def _turned(x: Tensor, rope: RotaryTable | None) -> Tensor:
    """Rotary positions of (B*h, N, d) with tables (N, d), or of (B, h, d, N) with tables (d, N)."""
    if rope is None:
        return x
    axis, half = 2, x.shape[2] // 2
    swapped = torch.cat([x.narrow(axis, half, half), x.narrow(axis, 0, half)], axis)
    return x * rope[0] + swapped * rope[1]


def _out(linear: nn.Module | None, x: Tensor) -> Tensor:
    if linear is None:
        return x
    y: Tensor = linear(x)
    return y


class TokenProjections(nn.Module):
    """q, k and v of tokens, with their norms, by heads. 1/sqrt(d) is in the norm of q where there is one."""

    def __init__(self, parts: AttentionParts, batch: int, ops: OpForm, scale: float) -> None:
        super().__init__()
        self.batch, self.dim, self.across = batch, parts.dim, parts.across
        self.q, self.k, self.v, self.out = parts.q, parts.k, parts.v, parts.out
        self.shared = parts.key_heads == 1  # by all queries, whose heads are then rows of one matrix
        rows = [batch if parts.across or self.shared else batch * heads for heads in (parts.heads, parts.key_heads)]
        self.q_norm = None if parts.q_norm is None else _token_norm(parts.q_norm, rows[0], ops, scale)
        self.k_norm = None if parts.k_norm is None else _token_norm(parts.k_norm, rows[1], ops)
        self.scale = scale if parts.q_norm is None else 1.0

    def three(self, x: Tensor, rope: RotaryTable | None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, N, D) -> q scaled, k, v (B*h, N, d)."""
        q, k = self.heads(self.q(x), self.q_norm), self.heads(self.k(x), self.k_norm)
        q = q if self.scale == 1.0 else q * self.scale
        return _turned(q, rope), _turned(k, rope), self.split(self.v(x))

    def heads(self, x: Tensor, norm: TokenNorm | None) -> Tensor:
        """(B, N, h*d) -> (B*h, N, d), or (B, N*h, d) where all share the keys, normed."""
        if self.across and norm is not None:
            return self.split(norm(x))
        return self.split(x) if norm is None else norm(self.split(x))

    def split(self, x: Tensor) -> Tensor:
        """The same without a norm. Where all share the keys, no number moves."""
        return x.reshape(self.batch, -1, self.dim) if self.shared else split_heads(x, self.dim)


class TokenAttention(TokenProjections):
    """Softmax attention of (B, N, D) to (B, M, T)."""

    def __init__(self, parts: AttentionParts, batch: int, ops: OpForm) -> None:
        super().__init__(parts, batch, ops, parts.dim**-0.5)

    def forward(self, x: Tensor, source: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (B, N, D), source (B, M, T), bias (B*h_kv, 1, M) or (1, 1, M) -> (B, N, D)."""
        q, k = self.heads(self.q(x), self.q_norm), self.heads(self.k(source), self.k_norm)  # (B*h, N, d), (B*h_kv, M, d)
        if self.scale != 1.0:  # to the fewer of both
            q, k = (q, k * self.scale) if k.shape[1] < q.shape[1] else (q * self.scale, k)
        mixed = dense(q, k.transpose(1, 2), self.split(self.v(source)), bias)  # (B*h, N, d)
        return _out(self.out, mixed.reshape(*x.shape[:2], -1) if self.shared else merge_heads(mixed, self.batch))


class TokenJoint(nn.Module):
    """Attention of image and text to both."""

    def __init__(self, image: AttentionParts, text: AttentionParts | None, batch: int, ops: OpForm) -> None:
        super().__init__()
        self.batch, scale = batch, image.dim**-0.5
        self.image = TokenProjections(image, batch, ops, scale)
        self.text = None if text is None else TokenProjections(text, batch, ops, scale)

    def forward(self, x: Tensor, text: Tensor, rope: RotaryTable | None) -> tuple[Tensor, Tensor]:
        """x (B, N, D), text (B, L, D), rope (N, d) twice -> both; without projections of the text it stays as it is."""
        three = self.image.three(x, rope)
        if self.text is not None:
            (q, k, v), own = three, self.text.three(text, None)
            three = torch.cat([q, own[0]], 1), torch.cat([k, own[1]], 1), torch.cat([v, own[2]], 1)
        q, k, v = three
        merged = merge_heads(dense(q, k.transpose(1, 2), v), self.batch)  # (B, N + L, D)
        if self.text is None:
            return _out(self.image.out, merged), text
        tokens, length = x.shape[1], text.shape[1]
        return _out(self.image.out, merged.narrow(1, 0, tokens)), _out(self.text.out, merged.narrow(1, tokens, length))


class TokenLinearAttention(TokenProjections):
    """relu(q) (relu(k)^T v) / relu(q) sum(relu(k)), with keys divided by their number, which cancels."""

    ones: Tensor

    def __init__(self, parts: AttentionParts, batch: int, tokens: int, ops: OpForm) -> None:
        super().__init__(parts, batch, ops, 1.0)
        self.share, self.least = 1.0 / tokens, _LEAST_NORMAL if ops == "half" else _LEAST
        self.register_buffer("ones", torch.ones(batch * parts.heads, tokens, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        q, k = (F.relu(self.heads(p(x), norm)) for p, norm in ((self.q, self.q_norm), (self.k, self.k_norm)))
        keys = (k * self.share).transpose(1, 2)  # (B*h, d, N)
        mixed = torch.bmm(q, torch.bmm(keys, split_heads(self.v(x), self.dim)))  # (B*h, N, d)
        total = torch.bmm(q, torch.bmm(keys, self.ones)).clamp(min=self.least)  # (B*h, N, 1)
        return _out(self.out, merge_heads(mixed / total, self.batch))


class TokensOverMap(nn.Module):
    """Layers over a map, between tokens."""

    def __init__(self, layers: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.layers, self.grid = layers, grid

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        batch, tokens, channels = x.shape
        y = self.layers(x.transpose(1, 2).reshape(batch, channels, *self.grid))  # (B, D, H, W)
        rows: Tensor = y.reshape(batch, channels, tokens)
        return rows.transpose(1, 2)


class ChannelsForms:
    """Of the channels layout; the batch is that of the example that is traced."""

    ops: OpForm = "half"

    def __init__(self, grid: tuple[int, int]) -> None:
        self.grid = grid

    def linear(self, source: nn.Linear) -> nn.Module:
        """A 1x1 convolution."""
        return fold.pointwise(source.weight, source.bias)

    def norm(self, parts: NormParts) -> nn.Module:
        """Over axis 1."""
        return norm_over_channels(parts)

    def activation(self, name: str) -> Callable[[Tensor], Tensor]:
        """As one operation where there is one."""
        return token_activation(name, "native")

    def vector(self, x: Tensor) -> Tensor:
        """(B, F) -> (B, F, 1, 1)."""
        return x.reshape(*x.shape, 1, 1)

    def projected(self, source: nn.Linear) -> nn.Module:
        """A 1x1 convolution."""
        return fold.pointwise(source.weight, source.bias)

    def parts(self, x: Tensor, count: int) -> tuple[Tensor, ...]:
        """(B, k*D, 1, 1) -> k times (B, D, 1, 1)."""
        width = x.shape[1] // count
        return (x,) if count == 1 else tuple(equal_parts(x, width, 1))

    def table(self, rows: Tensor) -> Tensor:
        """(k, D) -> (1, k*D, 1, 1)."""
        return rows.detach().reshape(1, -1, 1, 1)

    def tokens(self, embeddings: Tensor) -> Tensor:
        """(B, L, T) -> (B, T, 1, L)."""
        batch, length, width = embeddings.shape
        return embeddings.transpose(1, 2).reshape(batch, width, 1, length)

    def bias(self, mask: Tensor, heads: int) -> Tensor:
        """(B, L) -> (B, L, 1, 1)."""
        return ((mask - 1.0) * -MASKED).reshape(*mask.shape, 1, 1)

    def enter(self, conv: nn.Conv2d) -> nn.Module:
        """(B, C, h, w) -> (B, D, 1, N)."""
        return nn.Sequential(conv, InOneRow())

    def positions(self, table: Tensor) -> Tensor:
        """(N, D) -> (1, D, 1, N)."""
        return table.t()[None, :, None].contiguous()

    def leave(self, pixels: nn.Linear, patch: int) -> nn.Module:
        """(B, D, 1, N) -> (B, C, h, w)."""
        return ChannelsPixels(fold.pointwise(pixels.weight, pixels.bias), patch, self.grid)

    def attention(self, parts: AttentionParts) -> nn.Module:
        """On (B, D, 1, N)."""
        return ChannelsAttention(parts)

    def linear_attention(self, parts: AttentionParts) -> nn.Module:
        """On (B, D, 1, N)."""
        q, k, v = (NormedProjection(p, n) for p, n in ((parts.q, parts.q_norm), (parts.k, parts.k_norm), (parts.v, None)))
        if parts.q_norm is not None and not parts.across:
            raise BadInput("student: linear attention with a norm of each head is not converted for the channels layout")
        mixed = LinearAttention(q, k, v, parts.dim)
        return mixed if parts.out is None else nn.Sequential(mixed, fold.pointwise(parts.out.weight, parts.out.bias))

    def over_map(self, layers: nn.Module) -> nn.Module:
        """On (B, D, 1, N)."""
        return RowOverMap(layers, self.grid)

    def joint(self, image: AttentionParts, text: AttentionParts | None) -> nn.Module:
        """On (B, D, 1, N)."""
        return ChannelsJoint(image, text)

    def rotary(self, table: Tensor) -> Tensor:
        """(N, d) -> (d, N)."""
        return table.t().contiguous()

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """(B, D, 1, N) each -> (B, D, 1, sum of N)."""
        return parts[0] if len(parts) == 1 else torch.cat(list(parts), 3)

    def beside(self, parts: Sequence[Tensor]) -> Tensor:
        """(B, D, 1, N) each -> (B, sum of D, 1, N)."""
        return torch.cat(list(parts), 1)

    def some_tokens(self, x: Tensor, start: int, length: int) -> Tensor:
        """(B, D, 1, N) -> (B, D, 1, length)."""
        return x.narrow(3, start, length)

    def at(self, grid: tuple[int, int]) -> ChannelsForms:
        """The same on another map."""
        return ChannelsForms(grid)

    def of_map(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, 1, N)."""
        return x.reshape(*x.shape[:2], 1, -1)

    def to_map(self, x: Tensor) -> Tensor:
        """(B, D, 1, N) -> (B, D, H, W)."""
        return x.reshape(*x.shape[:2], *self.grid)


class InOneRow(nn.Module):
    """A map as a row of positions."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, 1, N)."""
        return x.reshape(*x.shape[:2], 1, -1)


class RowOverMap(nn.Module):
    """Layers over a map, between rows of positions."""

    def __init__(self, layers: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.layers, self.grid = layers, grid

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, 1, N) -> (B, D, 1, N)."""
        y: Tensor = self.layers(x.reshape(*x.shape[:2], *self.grid))
        return y.reshape(x.shape)


class ChannelsPixels(nn.Module):
    """The pixels of patches, ordered (channel, row, column), as a latent."""

    def __init__(self, project: nn.Module, patch: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.project, self.patch, self.grid = project, patch, grid

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, 1, N) -> (B, C, h, w)."""
        y = self.project(x.reshape(*x.shape[:2], *self.grid))  # (B, C*p*p, H, W)
        return y if self.patch == 1 else F.pixel_shuffle(y, self.patch)


class NormedProjection(nn.Module):
    """A projection, and a norm over all of its channels."""

    def __init__(self, source: nn.Linear, norm: NormParts | None, scale: float = 1.0) -> None:
        super().__init__()
        self.project = fold.pointwise(source.weight, source.bias)
        self.norm = None if norm is None else norm_over_channels(norm, scale=scale)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 1, M) -> (B, h*d, 1, M)."""
        y: Tensor = self.project(x)
        return y if self.norm is None else self.norm(y)


class HeadNorm(nn.Module):
    """A norm over the channels of each head."""

    def __init__(self, norm: ChannelsNorm, dim: int) -> None:
        super().__init__()
        self.norm, self.dim = norm, dim

    def forward(self, x: Tensor) -> Tensor:
        """(B, h*d, 1, N) -> (B, h*d, 1, N)."""
        y: Tensor = self.norm(x.reshape(x.shape[0], -1, self.dim, x.shape[3]))
        return y.reshape(x.shape)


class ChannelsAttention(nn.Module):
    """Softmax attention of (B, D, 1, N) to (B, T, 1, M). 1/sqrt(d) is in the norm of q where there is one."""

    def __init__(self, parts: AttentionParts) -> None:
        super().__init__()
        self.heads, scale = Heads(parts.heads, parts.key_heads, parts.dim), parts.dim**-0.5
        self.q = self._projection(parts, parts.q, parts.q_norm, scale)
        self.k = self._projection(parts, parts.k, parts.k_norm, 1.0)
        self.v = fold.pointwise(parts.v.weight, parts.v.bias)
        self.out = None if parts.out is None else fold.pointwise(parts.out.weight, parts.out.bias)
        self.scale = scale if parts.q_norm is None else 1.0

    @staticmethod
    def _projection(parts: AttentionParts, source: nn.Linear, norm: NormParts | None, scale: float) -> nn.Module:
        if norm is None or parts.across:
            return NormedProjection(source, norm, scale)
        by_head = HeadNorm(norm_over_channels(norm, 2, scale), parts.dim)
        return nn.Sequential(fold.pointwise(source.weight, source.bias), by_head)

    def forward(self, x: Tensor, source: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (B, D, 1, N), source (B, T, 1, M), bias (B, M, 1, 1) -> (B, D, 1, N)."""
        q, k = self.q(x), self.k(source)
        if self.scale != 1.0:  # to the fewer of both
            q, k = (q, k * self.scale) if k.shape[3] < q.shape[3] else (q * self.scale, k)
        attend = dense_shared if self.heads.keys == 1 else dense_per_head
        return _out(self.out, attend(q, k, self.v(source), self.heads, bias))


class ChannelsProjections(nn.Module):
    """q, k and v of (B, D, 1, N) with norms and rotary positions of each head."""

    def __init__(self, parts: AttentionParts) -> None:
        super().__init__()
        scale, self.dim = parts.dim**-0.5, parts.dim
        self.q, self.k, self.v = (fold.pointwise(p.weight, p.bias) for p in (parts.q, parts.k, parts.v))
        self.out = None if parts.out is None else fold.pointwise(parts.out.weight, parts.out.bias)
        self.q_norm = None if parts.q_norm is None else norm_over_channels(parts.q_norm, 2, scale)
        self.k_norm = None if parts.k_norm is None else norm_over_channels(parts.k_norm, 2)
        self.scale = scale if parts.q_norm is None else 1.0

    def three(self, x: Tensor, rope: RotaryTable | None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, D, 1, N) -> q scaled, k, v (B, h*d, 1, N)."""
        q = self._by_head(self.q(x), self.q_norm, rope)
        return q if self.scale == 1.0 else q * self.scale, self._by_head(self.k(x), self.k_norm, rope), self.v(x)

    def _by_head(self, x: Tensor, norm: ChannelsNorm | None, rope: RotaryTable | None) -> Tensor:
        if norm is None and rope is None:
            return x
        y = x.reshape(x.shape[0], -1, self.dim, x.shape[3])  # (B, h, d, N)
        return _turned(y if norm is None else norm(y), rope).reshape(x.shape)


class ChannelsJoint(nn.Module):
    """Attention of image and text to both."""

    def __init__(self, image: AttentionParts, text: AttentionParts | None) -> None:
        super().__init__()
        self.heads, self.image = Heads(image.heads, image.heads, image.dim), ChannelsProjections(image)
        self.text = None if text is None else ChannelsProjections(text)

    def forward(self, x: Tensor, text: Tensor, rope: RotaryTable | None) -> tuple[Tensor, Tensor]:
        """x (B, D, 1, N), text (B, D, 1, L), rope (d, N) twice -> both; without projections of the text x alone."""
        three = self.image.three(x, rope)
        if self.text is not None:
            (q, k, v), own = three, self.text.three(text, None)
            three = torch.cat([q, own[0]], 3), torch.cat([k, own[1]], 3), torch.cat([v, own[2]], 3)
        q, k, v = three
        mixed = dense_per_head(q, k, v, self.heads)  # (B, h*d, 1, N + L)
        if self.text is None:
            return _out(self.image.out, mixed), text
        tokens, length = x.shape[3], text.shape[3]
        return _out(self.image.out, mixed.narrow(3, 0, tokens)), _out(self.text.out, mixed.narrow(3, tokens, length))


class Perceptron(nn.Module):
    """Projections with an activation between them."""

    def __init__(self, layers: Sequence[nn.Module], act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        (self.first, self.second), self.act = layers, act

    def forward(self, x: Tensor) -> Tensor:
        """Channels -> channels of the second."""
        y: Tensor = self.second(self.act(self.first(x)))
        return y


def feed_forward(source: Any, forms: Forms) -> Perceptron:
    """Of the library's `FeedForward` with the tanh form of GELU.

    Raises:
        BadInput: if it has another activation.
    """
    first, last = source.net[0], source.net[2]
    if type(first).__name__ != "GELU" or first.approximate != "tanh":
        raise not_converted(first, "as a feed-forward layer")
    return Perceptron([forms.linear(first.proj), forms.linear(last)], forms.activation(GELU_TANH))


def concatenated(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Their concatenation. XNNPACK's partitioner leaves one that has a tensor twice outside the delegate: it gets a copy."""
    again = [any(x is before for before in parts[:at]) for at, x in enumerate(parts)]
    return torch.cat([x.clone() if twice else x for x, twice in zip(parts, again, strict=True)], dim)


def count_streams(texts: Sequence[Tensor]) -> int:
    """How many text streams a student's inputs have: two inputs each, of which the first has three axes."""
    return sum(text.dim() == 3 for text in texts)


def with_unread(features: Tensor, values: Sequence[Tensor]) -> Tensor:
    """features (B, F), with a number of each input added as zero: inputs that a network does not read stay inputs."""
    for value in values:
        flat = value if value.dim() == 2 else value.flatten(1)
        features = features + flat.narrow(1, 0, 1) * 0.0
    return features
