"""Kernel forms in the channels layout: q (B, h*d, 1, N), k and v (B, h_kv*d, 1, M), result (B, h*d, 1, N).

The same mathematics as `forms`, with tokens on the last axis and products of the shape K^T Q, so that nothing is transposed but
the keys (as in Apple's notes on transformers for the Neural Engine, apple/ml-ane-transformers). `per_head` is the split einsum:
one pair of products per query head, on channel slices. `loop` and `batched` do all heads at once, the query heads of a group
side by side in the columns of one product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from snapgen_deploy.sparse.geometry import Heads, windows


class Dense(Protocol):
    """softmax(q k^T + bias) v; q scaled by 1/sqrt(d), bias (B, M, 1, 1) or None."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: Heads, bias: Tensor | None = None) -> Tensor:
        """q (B, h*d, 1, N), k and v (B, h_kv*d, 1, M) -> (B, h*d, 1, N)."""
        ...


class Near(Protocol):
    """Blockwise Neighborhood Attention.

    Raises:
        BadInput: if `blocks` does not divide N, or the radius is negative.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: Heads, blocks: int, radius: int) -> Tensor:
        """q (B, h*d, 1, N), k and v (B, h_kv*d, 1, N) -> (B, h*d, 1, N)."""
        ...


@dataclass(frozen=True)
class ChannelsForm:
    """One way to compute attention in the channels layout."""

    dense: Dense
    near: Near


def dense_batched(q: Tensor, k: Tensor, v: Tensor, heads: Heads, bias: Tensor | None = None) -> Tensor:
    """All heads in one pair of products."""
    kt, values = _keys(k, heads).transpose(2, 3), _keys(v, heads)  # (B, h_kv, M, d), (B, h_kv, d, M)
    flat = None if bias is None else bias.reshape(q.shape[0], 1, -1, 1)  # (B, 1, M, 1)
    return _attend(_grouped(q, heads), kt, values, heads, flat).reshape(q.shape)


def dense_per_head(q: Tensor, k: Tensor, v: Tensor, heads: Heads, bias: Tensor | None = None) -> Tensor:
    """One pair of products per query head."""
    return _per_head(q, k.permute(0, 3, 2, 1), v, heads, bias)


def dense_shared(q: Tensor, k: Tensor, v: Tensor, heads: Heads, bias: Tensor | None = None) -> Tensor:
    """All heads in one pair of products, with the one head of keys and values that they share."""
    kt, values = _keys(k, heads).transpose(2, 3), _keys(v, heads)  # (B, 1, M, d), (B, 1, d, M)
    scores = torch.matmul(kt, q.reshape(q.shape[0], heads.queries, heads.dim, -1))  # (B, h, M, N)
    if bias is not None:
        scores = scores + bias.reshape(q.shape[0], 1, -1, 1)
    return torch.matmul(values, scores.softmax(2)).reshape(q.shape)


def near_loop(q: Tensor, k: Tensor, v: Tensor, heads: Heads, blocks: int, radius: int) -> Tensor:
    """One pair of products per block, over all heads at once."""
    found = windows(q.shape[3], blocks, radius)
    grouped, kt, values = _grouped(q, heads), _keys(k, heads).transpose(2, 3), _keys(v, heads)
    parts = [
        _attend(
            grouped.narrow(3, w.start, w.length),
            kt.narrow(2, w.key_start, w.key_length),
            values.narrow(3, w.key_start, w.key_length),
            heads,
        )
        for w in found
    ]  # (B, h_kv, g*d, n) each
    return _joined(parts, 3).reshape(q.shape)


def near_batched(q: Tensor, k: Tensor, v: Tensor, heads: Heads, blocks: int, radius: int) -> Tensor:
    """All inner blocks in one pair of products through 2*radius + 1 shifted slices; border blocks one by one."""
    found = windows(q.shape[3], blocks, radius)
    inner = blocks - 2 * radius
    if inner < 2:  # nothing to batch
        return near_loop(q, k, v, heads, blocks, radius)
    size, one = q.shape[3] // blocks, (q.shape[0] * heads.keys, -1)
    grouped, kt, values = _grouped(q, heads), _keys(k, heads).transpose(2, 3), _keys(v, heads)

    def stacked(x: Tensor, shift: int) -> Tensor:
        """(B, h_kv, c, N) -> the `inner` blocks from block `shift` on: (B*h_kv, inner, c, size)."""
        run = x.narrow(3, shift * size, inner * size).reshape(one[0], x.shape[2], inner, size)
        return run.transpose(1, 2)

    near_k = _joined([stacked(_keys(k, heads), o) for o in range(2 * radius + 1)], 3)  # (B*h_kv, inner, d, near)
    near_v = _joined([stacked(values, o) for o in range(2 * radius + 1)], 3)
    mixed = _attend(stacked(grouped, radius), near_k.transpose(2, 3), near_v, heads)  # (B*h_kv, inner, g*d, size)
    mixed = mixed.transpose(1, 2).reshape(*grouped.shape[:3], inner * size)  # (B, h_kv, g*d, inner*size)

    def border(start: int, stop: int) -> list[Tensor]:
        return [
            _attend(
                grouped.narrow(3, w.start, w.length),
                kt.narrow(2, w.key_start, w.key_length),
                values.narrow(3, w.key_start, w.key_length),
                heads,
            )
            for w in found
            if start <= w.start < stop
        ]

    first, last = border(0, radius * size), border((radius + inner) * size, q.shape[3])
    return _joined([*first, mixed, *last], 3).reshape(q.shape)


def near_per_head(q: Tensor, k: Tensor, v: Tensor, heads: Heads, blocks: int, radius: int) -> Tensor:
    """One pair of products per block and query head."""
    kt = k.permute(0, 3, 2, 1)  # (B, N, 1, h_kv*d)
    parts = []
    for w in windows(q.shape[3], blocks, radius):
        queries = q.narrow(3, w.start, w.length)  # (B, h*d, 1, size)
        keys, values = kt.narrow(1, w.key_start, w.key_length), v.narrow(3, w.key_start, w.key_length)
        parts.append(_per_head(queries, keys, values, heads))
    return _joined(parts, 3)  # (B, h*d, 1, N)


CHANNELS_FORMS: Mapping[str, ChannelsForm] = MappingProxyType(
    {
        "loop": ChannelsForm(dense_batched, near_loop),
        "batched": ChannelsForm(dense_batched, near_batched),
        "per_head": ChannelsForm(dense_per_head, near_per_head),
    }
)


def equal_parts(x: Tensor, size: int, dim: int) -> list[Tensor]:
    """Parts of one size along an axis, by one operation that gives all of them.

    A single part is a slice, which converters drop: published loads were counted with it (`latency.estimate.published`).
    """
    return [x.narrow(dim, 0, size)] if x.shape[dim] == size else list(torch.split(x, size, dim))


def rotated_channels(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions; x (B, h, d, N), rope: C and S (d, N) of `fold.rope_constants`, transposed."""
    exchanged = torch.cat(equal_parts(x, x.shape[2] // 2, 2)[::-1], 2)  # (B, h, d, N), the halves of d
    return x * rope[0] + exchanged * rope[1]


def _grouped(q: Tensor, heads: Heads) -> Tensor:
    """(B, h*d, 1, N) -> (B, h_kv, g*d, N)."""
    return q.reshape(q.shape[0], heads.keys, heads.group * heads.dim, -1)


def _keys(x: Tensor, heads: Heads) -> Tensor:
    """(B, h_kv*d, 1, M) -> (B, h_kv, d, M)."""
    return x.reshape(x.shape[0], heads.keys, heads.dim, -1)


def _attend(grouped: Tensor, kt: Tensor, v: Tensor, heads: Heads, bias: Tensor | None = None) -> Tensor:
    """grouped (X, Y, g*d, n), kt (X, Y, m, d), v (X, Y, d, m), bias (X, 1, m, 1) -> (X, Y, g*d, n)."""
    dim, count = heads.dim, grouped.shape[3]
    columns = _joined(equal_parts(grouped, dim, 2), 3)  # (X, Y, d, g*n)
    scores = torch.matmul(kt, columns)  # (X, Y, m, g*n)
    if bias is not None:
        scores = scores + bias
    mixed = torch.matmul(v, scores.softmax(2))  # (X, Y, d, g*n)
    return _joined(equal_parts(mixed, count, 3), 2)  # (X, Y, g*d, n)


def _per_head(q: Tensor, kt: Tensor, v: Tensor, heads: Heads, bias: Tensor | None = None) -> Tensor:
    """q (B, h*d, 1, n), kt (B, m, 1, h_kv*d), v (B, h_kv*d, 1, m), bias (B, m, 1, 1) -> (B, h*d, 1, n)."""
    queries, keys, values = equal_parts(q, heads.dim, 1), equal_parts(kt, heads.dim, 3), equal_parts(v, heads.dim, 1)
    of_head = [(query, keys[i // heads.group], values[i // heads.group]) for i, query in enumerate(queries)]
    return _joined([_one_head(*three, bias) for three in of_head], 1)


def _one_head(q: Tensor, kt: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """q (B, d, 1, n), kt (B, m, 1, d), v (B, d, 1, m), bias (B, m, 1, 1) -> (B, d, 1, n)."""
    scores = torch.einsum("bkhc,bchq->bkhq", kt, q)  # (B, m, 1, n)
    if bias is not None:
        scores = scores + bias
    return torch.einsum("bchk,bkhq->bchq", v, scores.softmax(1))


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    """Concatenation that leaves no one-part `cat` in the graph."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
