"""Kernel forms of Blockwise Neighborhood Attention in the token layout.

All of them compute out_b = softmax(q_b k_N(b)^T) v_N(b) for block b and its neighbourhood N(b) (SnapGen++, arXiv 2601.08303,
section 3). None of them needs a mask or a gather: a neighbourhood is one contiguous slice. Query heads that share a key/value
head are stacked in the rows of one product, so that keys and values are never repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from snapgen_deploy.sparse.geometry import Heads, Window, check_heads, windows


class Kernel(Protocol):
    """One form: q (h, N, d), already scaled by 1/sqrt(d); k and v (h_kv, N, d); result (h, N, d).

    A batch is folded into the heads: (B*h, N, d) with (B*h_kv, N, d).

    Raises:
        BadInput: if `blocks` does not divide N, the radius is negative, or the query heads are not a multiple of the
            key/value heads.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, blocks: int, radius: int) -> Tensor:
        """q (h, N, d), k and v (h_kv, N, d) -> (h, N, d)."""
        ...


def dense(q: Tensor, kt: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q kt + bias) v; q (h, N, d) scaled, kt (h_kv, d, M), v (h_kv, M, d), bias (1, 1, M), result (h, N, d)."""
    if q.shape[0] == kt.shape[0]:
        return _attend(q, kt, v, bias)  # (h, N, d)
    rows = q.reshape(kt.shape[0], -1, q.shape[2])  # (h_kv, g*N, d)
    return _attend(rows, kt, v, bias).reshape(q.shape)  # (h, N, d)


def loop(q: Tensor, k: Tensor, v: Tensor, blocks: int, radius: int) -> Tensor:
    """One pair of products per block, over all heads at once."""
    heads = check_heads(q, k, v)
    found = windows(q.shape[1], blocks, radius)
    kt = k.transpose(1, 2)  # (h_kv, d, N)
    grouped = q.reshape(heads.keys, heads.group, -1, heads.dim)  # (h_kv, g, N, d)
    parts = [_window(grouped, kt, v, w, heads) for w in found]  # (h_kv, g, size, d) each
    return _joined(parts, 2).reshape(q.shape)


def batched(q: Tensor, k: Tensor, v: Tensor, blocks: int, radius: int) -> Tensor:
    """All inner blocks in one pair of products, their keys through 2*radius + 1 shifted slices; border blocks one by one."""
    heads = check_heads(q, k, v)
    found = windows(q.shape[1], blocks, radius)
    inner = blocks - 2 * radius
    if inner < 2:  # nothing to batch
        return loop(q, k, v, blocks, radius)
    size, near = q.shape[1] // blocks, 2 * radius + 1
    kt = k.transpose(1, 2)  # (h_kv, d, N)
    grouped = q.reshape(heads.keys, heads.group, -1, heads.dim)  # (h_kv, g, N, d)

    middle = grouped.narrow(2, radius * size, inner * size)  # (h_kv, g, inner*size, d)
    rows = middle.reshape(heads.keys, heads.group, inner, size * heads.dim).transpose(1, 2)  # (h_kv, inner, g, size*d)
    rows = rows.reshape(heads.keys * inner, heads.group * size, heads.dim)  # (h_kv*inner, g*size, d)
    keys, values = (
        _joined([t.narrow(1, o * size, inner * size).reshape(-1, size, heads.dim) for o in range(near)], 1) for t in (k, v)
    )  # (h_kv*inner, near*size, d)
    mixed = _attend(rows, keys.transpose(1, 2), values)  # (h_kv*inner, g*size, d)
    mixed = mixed.reshape(heads.keys, inner, heads.group, size * heads.dim).transpose(1, 2)  # (h_kv, g, inner, size*d)
    mixed = mixed.reshape(heads.keys, heads.group, inner * size, heads.dim)

    first = [_window(grouped, kt, v, w, heads) for w in found if w.start < radius * size]
    last = [_window(grouped, kt, v, w, heads) for w in found if w.start >= (radius + inner) * size]
    return _joined([*first, mixed, *last], 2).reshape(q.shape)


def per_head(q: Tensor, k: Tensor, v: Tensor, blocks: int, radius: int) -> Tensor:
    """One pair of products per block and key/value head (split einsum): the smallest score matrices."""
    heads = check_heads(q, k, v)
    found = windows(q.shape[1], blocks, radius)
    kt = k.transpose(1, 2)  # (h_kv, d, N)
    one = Heads(heads.group, 1, heads.dim)
    parts = []
    for j in range(heads.keys):
        grouped = q.narrow(0, j * heads.group, heads.group).reshape(1, heads.group, -1, heads.dim)  # (1, g, N, d)
        kt_j, v_j = kt.narrow(0, j, 1), v.narrow(0, j, 1)  # (1, d, N), (1, N, d)
        mixed = _joined([_window(grouped, kt_j, v_j, w, one) for w in found], 2)  # (1, g, N, d)
        parts.append(mixed.reshape(heads.group, -1, heads.dim))
    return _joined(parts, 0)  # (h, N, d)


FORMS: Mapping[str, Kernel] = MappingProxyType({"loop": loop, "batched": batched, "per_head": per_head})


def _attend(rows: Tensor, kt: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(rows kt + bias) v; rows (X, n, d), kt (X, d, M), v (X, M, d), bias that broadcasts to (X, n, M)."""
    scores = torch.bmm(rows, kt)  # (X, n, M)
    if bias is not None:
        scores = scores + bias
    return torch.bmm(scores.softmax(-1), v)  # (X, n, d)


def _window(grouped: Tensor, kt: Tensor, v: Tensor, w: Window, heads: Heads) -> Tensor:
    """grouped (h_kv, g, N, d), kt (h_kv, d, N), v (h_kv, N, d) -> the window's result (h_kv, g, size, d)."""
    rows = grouped.narrow(2, w.start, w.length).reshape(heads.keys, -1, heads.dim)  # (h_kv, g*size, d)
    near_k, near_v = kt.narrow(2, w.key_start, w.key_length), v.narrow(1, w.key_start, w.key_length)
    return _attend(rows, near_k, near_v).reshape(heads.keys, heads.group, w.length, heads.dim)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    """Concatenation that leaves no one-part `cat` in the graph (XNNPACK takes 2 parts or more)."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
