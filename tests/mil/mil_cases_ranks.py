"""Cases for scalars and for axes whose size only the run tells, 0 included; numpy is the oracle.

`VECTORS` are given v (n,), m (n, 3) = v times 1, 2, 3, and i (n,), different int32 from 0 to 5; `SCALARS` are given s, a
positive real scalar, and k, an int32 scalar from 0 to 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special

from tests.mil.mil_harness import mb

TABLE = np.arange(21, dtype=np.float32).reshape(7, 3)
RoundTrip = tuple[Callable[..., Any], Callable[..., Any]]


def _sizes(x: Any, *more: int) -> Any:
    """x's first size and further ones behind it, computed as the program runs."""
    first = mb.slice_by_index(x=mb.shape(x=x), begin=[0], end=[1])
    return mb.concat(values=[first, np.array(more, np.int32)], axis=0)


def column(x: Any) -> Any:
    return mb.expand_dims(x=x, axes=[1])


def ones(i: Any) -> Any:
    """As many ones as i has numbers."""
    return mb.add(x=mb.mul(x=i, y=np.int32(0)), y=np.int32(1))


def _put(data: np.ndarray, places: Any, values: np.ndarray) -> np.ndarray:
    data = data.copy()
    data[places] = values
    return data


VECTORS: dict[str, RoundTrip] = {
    "add": (lambda v, m, i: mb.add(x=v, y=np.float32(1)), lambda v, m, i: v + 1),
    "argsort": (lambda v, m, i: mb.argsort(x=v, axis=0, ascending=True), lambda v, m, i: np.argsort(v, kind="stable")),
    "band_part": (lambda v, m, i: mb.band_part(x=m, lower=0, upper=-1), lambda v, m, i: np.triu(m)),
    "cast": (lambda v, m, i: mb.cast(x=v, dtype="int32"), lambda v, m, i: v.astype(np.int32)),
    "concat": (lambda v, m, i: mb.concat(values=[v, v], axis=0), lambda v, m, i: np.concatenate([v, v])),
    "concat__interleave": (
        lambda v, m, i: mb.concat(values=[m, m], axis=1, interleave=True),
        lambda v, m, i: np.repeat(m, 2, 1),
    ),
    "conv": (
        lambda v, m, i: mb.conv(x=column(m), weight=np.ones((2, 1, 2), np.float32), pad_type="valid"),
        lambda v, m, i: np.stack([m[:, :-1] + m[:, 1:]] * 2, 1),
    ),
    "cumsum": (lambda v, m, i: mb.cumsum(x=v, axis=0), lambda v, m, i: np.cumsum(v)),
    "cumsum__exclusive": (lambda v, m, i: mb.cumsum(x=m, axis=0, exclusive=True), lambda v, m, i: np.cumsum(m, 0) - m),
    "cumsum__reverse": (lambda v, m, i: mb.cumsum(x=v, reverse=True), lambda v, m, i: np.cumsum(v[::-1])[::-1]),
    "fill": (lambda v, m, i: mb.fill(shape=_sizes(v, 2), value=2.5), lambda v, m, i: np.full((len(v), 2), 2.5)),
    "fill_like": (lambda v, m, i: mb.fill_like(ref_tensor=m, value=3.0), lambda v, m, i: np.full(m.shape, 3.0)),
    "flatten2d": (lambda v, m, i: mb.flatten2d(x=m, axis=0), lambda v, m, i: m.reshape(1, m.size)),
    "gather": (lambda v, m, i: mb.gather(x=TABLE, indices=i, axis=0), lambda v, m, i: TABLE[i]),
    "gather__batch": (
        lambda v, m, i: mb.gather(x=m, indices=mb.tile(x=column(ones(i)), reps=[1, 2]), axis=1, batch_dims=1),
        lambda v, m, i: m[:, [1, 1]],
    ),
    "gather__rank_of_batch": (lambda v, m, i: mb.gather(x=m, indices=ones(i), axis=1, batch_dims=1), lambda v, m, i: m[:, 1]),
    "gather_along_axis": (
        lambda v, m, i: mb.gather_along_axis(x=m, indices=column(ones(i)), axis=1),
        lambda v, m, i: m[:, 1:2],
    ),
    "gather_nd": (lambda v, m, i: mb.gather_nd(x=TABLE, indices=column(i)), lambda v, m, i: TABLE[i]),
    "gather_nd__rank_of_batch": (
        lambda v, m, i: mb.gather_nd(x=m, indices=column(ones(i)), batch_dims=1),
        lambda v, m, i: m[:, 1],
    ),
    "layer_norm": (
        lambda v, m, i: mb.layer_norm(x=m, axes=[1]),
        lambda v, m, i: (m - m.mean(1, keepdims=True)) / np.sqrt(m.var(1, keepdims=True) + 1e-5),
    ),
    "linear": (lambda v, m, i: mb.linear(x=m, weight=TABLE), lambda v, m, i: m @ TABLE.T),
    "matmul": (lambda v, m, i: mb.matmul(x=m, y=m, transpose_x=True), lambda v, m, i: m.T @ m),
    "matmul__wide": (lambda v, m, i: mb.matmul(x=m, y=m, transpose_y=True), lambda v, m, i: m @ m.T),
    "non_zero": (lambda v, m, i: mb.non_zero(x=m), lambda v, m, i: np.argwhere(m)),
    "one_hot": (lambda v, m, i: mb.one_hot(indices=i, one_hot_vector_size=7), lambda v, m, i: np.eye(7, dtype=np.int32)[i]),
    "pad": (
        lambda v, m, i: mb.pad(x=v, pad=[2, 0], constant_val=np.float32(7)),
        lambda v, m, i: np.pad(v, (2, 0), constant_values=7),
    ),
    "range_1d": (
        lambda v, m, i: mb.range_1d(start=np.int32(0), end=mb.squeeze(x=mb.shape(x=v)), step=np.int32(1)),
        lambda v, m, i: np.arange(len(v)),
    ),
    "range_1d__beyond": (
        lambda v, m, i: mb.range_1d(start=np.int32(2), end=mb.squeeze(x=mb.shape(x=v)), step=np.int32(1)),
        lambda v, m, i: np.arange(2, len(v)),
    ),
    "reduce_argmax": (lambda v, m, i: mb.reduce_argmax(x=m, axis=1), lambda v, m, i: m.argmax(1)),
    "reduce_max": (lambda v, m, i: mb.reduce_max(x=m, axes=[-1], keep_dims=True), lambda v, m, i: m.max(-1, keepdims=True)),
    "reduce_prod": (lambda v, m, i: mb.reduce_prod(x=m, axes=[0]), lambda v, m, i: m.prod(0)),
    "reduce_sum": (lambda v, m, i: mb.reduce_sum(x=m, axes=[0]), lambda v, m, i: m.sum(0)),
    "reshape": (lambda v, m, i: mb.reshape(x=m, shape=_sizes(v, 1, 3)), lambda v, m, i: m[:, None]),
    "reshape__inferred": (lambda v, m, i: mb.reshape(x=m, shape=[-1, 1, 3]), lambda v, m, i: m[:, None]),
    "resize_bilinear": (
        lambda v, m, i: mb.upsample_bilinear(
            x=mb.expand_dims(x=m, axes=[1, 2]), scale_factor_height=2, scale_factor_width=1, align_corners=False
        ),
        lambda v, m, i: np.repeat(m[:, None, None], 2, 2),
    ),
    "reverse": (lambda v, m, i: mb.reverse(x=v), lambda v, m, i: v[::-1]),
    "scatter": (
        lambda v, m, i: mb.scatter(data=TABLE, indices=i, updates=m, axis=0, mode="update"),
        lambda v, m, i: _put(TABLE, i, m),
    ),
    "scatter_nd": (
        lambda v, m, i: mb.scatter_nd(data=TABLE, indices=column(i), updates=m, mode="add"),
        lambda v, m, i: _put(TABLE, i, TABLE[i] + m),
    ),
    "select": (
        lambda v, m, i: mb.select(cond=mb.greater(x=v, y=np.float32(0.5)), a=v, b=np.float32(0)),
        lambda v, m, i: np.where(v > 0.5, v, 0),
    ),
    "shape": (lambda v, m, i: mb.shape(x=m), lambda v, m, i: np.array(m.shape)),
    "slice_by_index": (lambda v, m, i: mb.slice_by_index(x=v, begin=[1], end=[3]), lambda v, m, i: v[1:3]),
    "slice_by_index__back": (
        lambda v, m, i: mb.slice_by_index(x=v, begin=[0], end=[0], stride=[-1], begin_mask=[True], end_mask=[True]),
        lambda v, m, i: v[::-1],
    ),
    "slice_by_index__computed": (
        lambda v, m, i: mb.slice_by_index(x=TABLE, begin=[0, 1], end=_sizes(v, 3)),
        lambda v, m, i: TABLE[: len(v), 1:],
    ),
    "slice_by_size": (lambda v, m, i: mb.slice_by_size(x=m, begin=[0, 1], size=[-1, 2]), lambda v, m, i: m[:, 1:]),
    "slice_by_size__computed": (
        lambda v, m, i: mb.slice_by_size(x=TABLE, begin=[0, 0], size=_sizes(v, 2)),
        lambda v, m, i: TABLE[: len(v), :2],
    ),
    "sliding_windows": (
        lambda v, m, i: mb.sliding_windows(x=m, axis=1, size=2),
        lambda v, m, i: np.stack([m[:, :2], m[:, 1:]], 1),
    ),
    "softmax": (lambda v, m, i: mb.softmax(x=m, axis=-1), lambda v, m, i: scipy.special.softmax(m, -1) if len(m) else m),
    "split": (lambda v, m, i: mb.split(x=m, num_splits=3, axis=1), lambda v, m, i: (m[:, :1], m[:, 1:2], m[:, 2:])),
    "squeeze": (lambda v, m, i: mb.squeeze(x=mb.expand_dims(x=v, axes=[0, 2]), axes=[0, 2]), lambda v, m, i: v),
    "stack": (lambda v, m, i: mb.stack(values=[v, v], axis=1), lambda v, m, i: np.stack([v, v], 1)),
    "tile": (lambda v, m, i: mb.tile(x=v, reps=[2]), lambda v, m, i: np.tile(v, 2)),
    "topk": (lambda v, m, i: mb.topk(x=m, k=2, axis=1)[0], lambda v, m, i: m[:, :0:-1]),
    "transpose": (lambda v, m, i: mb.transpose(x=m, perm=[1, 0]), lambda v, m, i: m.T),
}

SCALARS: dict[str, RoundTrip] = {
    "gather": (lambda s, k: mb.gather(x=TABLE, indices=k, axis=0), lambda s, k: TABLE[k]),
    "gather__scalar": (lambda s, k: mb.gather(x=TABLE[:, 1], indices=k, axis=0), lambda s, k: TABLE[k, 1]),
    "gather_nd__scalar": (
        lambda s, k: mb.gather_nd(x=TABLE, indices=mb.stack(values=[k, 1], axis=0)),
        lambda s, k: TABLE[k, 1],
    ),
    "cast": (lambda s, k: mb.cast(x=k, dtype="fp32"), lambda s, k: np.float32(k)),
    "clip": (lambda s, k: mb.clip(x=s, alpha=0.1, beta=0.2), lambda s, k: np.clip(s, 0.1, 0.2)),
    "concat": (lambda s, k: mb.concat(values=[s, s], axis=0), lambda s, k: np.array([s, s])),
    "expand_dims": (lambda s, k: mb.expand_dims(x=s, axes=[0]), lambda s, k: np.array([s])),
    "fill": (lambda s, k: mb.fill(shape=mb.expand_dims(x=k, axes=[0]), value=2.0), lambda s, k: np.full(k, 2.0)),
    "fill_like": (lambda s, k: mb.fill_like(ref_tensor=s, value=2.0), lambda s, k: np.float32(2)),
    "floor_div": (lambda s, k: mb.floor_div(x=k, y=np.int32(2)), lambda s, k: k // 2),
    "identity": (lambda s, k: mb.identity(x=s), lambda s, k: s),
    "layer_norm": (
        lambda s, k: mb.layer_norm(x=TABLE, axes=np.zeros(0, np.int32), beta=np.float32(2), gamma=np.float32(1)),
        lambda s, k: np.full(TABLE.shape, 2.0),
    ),
    "one_hot": (lambda s, k: mb.one_hot(indices=k, one_hot_vector_size=7), lambda s, k: np.eye(7, dtype=np.int32)[k]),
    "pow": (lambda s, k: mb.pow(x=s, y=np.float32(3)), lambda s, k: s**3),
    "range_1d": (lambda s, k: mb.range_1d(start=np.int32(0), end=k, step=np.int32(1)), lambda s, k: np.arange(k)),
    "real_div": (lambda s, k: mb.real_div(x=TABLE, y=s), lambda s, k: TABLE / s),
    "reduce_sum": (lambda s, k: mb.reduce_sum(x=TABLE, axes=np.zeros(0, np.int32)), lambda s, k: TABLE),
    "reshape": (lambda s, k: mb.reshape(x=s, shape=[1, 1]), lambda s, k: np.array([[s]])),
    "scatter_nd": (
        lambda s, k: mb.scatter_nd(data=TABLE, indices=mb.stack(values=[k, 1], axis=0), updates=s, mode="update"),
        lambda s, k: _put(TABLE, (k, 1), s),
    ),
    "select": (
        lambda s, k: mb.select(cond=mb.greater(x=s, y=np.float32(0.5)), a=s, b=np.float32(0)),
        lambda s, k: s * (s > 0.5),
    ),
    "slice_by_index": (
        lambda s, k: mb.slice_by_index(x=TABLE, begin=mb.stack(values=[k, 0], axis=0), end=[7, 2], squeeze_mask=[True, False]),
        lambda s, k: TABLE[k, :2],
    ),
    "softplus": (lambda s, k: mb.softplus(x=s), lambda s, k: np.log1p(np.exp(s))),
    "squeeze": (lambda s, k: mb.squeeze(x=TABLE[:1, :1], axes=np.zeros(0, np.int32)), lambda s, k: TABLE[:1, :1]),
    "squeeze__all": (lambda s, k: mb.squeeze(x=mb.reshape(x=s, shape=[1, 1])), lambda s, k: s),
    "stack": (lambda s, k: mb.stack(values=[s, s], axis=0), lambda s, k: np.array([s, s])),
}
