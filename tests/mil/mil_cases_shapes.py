"""Cases for reductions, shapes and slices; numpy (or loops) is the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special

from tests.mil.mil_cases_elementwise import real, whole
from tests.mil.mil_harness import Case, mb

_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "reduce_l1_norm": lambda x, **k: np.abs(x).sum(**k),
    "reduce_l2_norm": lambda x, **k: np.sqrt(np.square(x).sum(**k)),
    "reduce_log_sum": lambda x, **k: np.log(x.sum(**k)),
    "reduce_log_sum_exp": lambda x, **k: scipy.special.logsumexp(x, **k),
    "reduce_max": lambda x, **k: x.max(**k),
    "reduce_mean": lambda x, **k: x.mean(**k),
    "reduce_min": lambda x, **k: x.min(**k),
    "reduce_prod": lambda x, **k: x.prod(**k),
    "reduce_sum": lambda x, **k: x.sum(**k),
    "reduce_sum_square": lambda x, **k: np.square(x).sum(**k),
}


def _reductions() -> list[Case]:
    cases = []
    for name, oracle in _REDUCTIONS.items():
        for i, (axes, keep) in enumerate([((-1,), False), ((0, -2), True), (None, True)]):

            def build(x: Any, name: str = name, axes: Any = axes, keep: bool = keep) -> Any:
                given = {} if axes is None else {"axes": list(axes)}
                return getattr(mb, name)(x=x, keep_dims=keep, **given)

            def expect(x: np.ndarray, o: Any = oracle, axes: Any = axes, keep: bool = keep) -> Any:
                return o(x, axis=axes, keepdims=keep)

            cases.append(Case(f"{name}__{i}", {"x": real(2, 3, 4, low=0.3)}, build, expect))
    cases.append(
        Case("reduce_sum__int", {"x": whole(2, 3)}, lambda x: mb.reduce_sum(x=x, axes=[0]), lambda x: x.sum(0).astype(np.int32))
    )
    for name, arg in (("reduce_argmax", np.argmax), ("reduce_argmin", np.argmin)):
        for keep in (False, True):
            cases.append(
                Case(
                    f"{name}__{keep}",
                    {"x": real(3, 4, 5)},
                    lambda x, name=name, keep=keep: getattr(mb, name)(x=x, axis=-2, keep_dims=keep),
                    lambda x, arg=arg, keep=keep: arg(x, -2, keepdims=keep).astype(np.int32),
                )
            )
    return cases


X = {"x": real(2, 3, 4)}
IMAGE = {"x": real(2, 8, 4, 6)}


def _depth_to_space(x: np.ndarray, b: int) -> np.ndarray:
    """TensorFlow's order: channel = (row in block * b + column in block) * C + c, cell by cell."""
    n, c, h, w = x.shape
    out = np.zeros((n, c // b**2, h * b, w * b), x.dtype)
    for i in range(b):
        for j in range(b):
            for k in range(c // b**2):
                out[:, k, i::b, j::b] = x[:, (i * b + j) * (c // b**2) + k]
    return out


def _space_to_depth(x: np.ndarray, b: int) -> np.ndarray:
    parts = [x[:, :, i::b, j::b] for i in range(b) for j in range(b)]
    return np.concatenate(parts, 1)


def _pixel_shuffle(x: np.ndarray, f: int) -> np.ndarray:
    n, c, h, w = x.shape
    out = np.zeros((n, c // f**2, h * f, w * f), x.dtype)
    for k in range(c // f**2):
        for i in range(f):
            for j in range(f):
                out[:, k, i::f, j::f] = x[:, k * f * f + i * f + j]
    return out


def _pixel_unshuffle(x: np.ndarray, f: int) -> np.ndarray:
    return np.stack([x[:, c, i::f, j::f] for c in range(x.shape[1]) for i in range(f) for j in range(f)], 1)


def _space_to_batch(x: np.ndarray) -> np.ndarray:
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 3)))
    return np.concatenate([x[:, :, i::2, j::3] for i in range(2) for j in range(3)], 0)


def _batch_to_space(x: np.ndarray) -> np.ndarray:
    n, c, h, w = x.shape
    out = np.zeros((n // 6, c, h * 2, w * 3), x.dtype)
    for place in range(6):
        out[:, :, place // 3 :: 2, place % 3 :: 3] = x[place * (n // 6) : (place + 1) * (n // 6)]
    return out[:, :, 1:-1, : w * 3 - 2]


SHAPES = [
    Case("identity", X, lambda x: mb.identity(x=x), lambda x: x),
    Case("reshape", X, lambda x: mb.reshape(x=x, shape=[4, -1]), lambda x: x.reshape(4, 6)),
    Case("reshape__zero", X, lambda x: mb.reshape(x=x, shape=[0, -1, 2]), lambda x: x.reshape(2, 6, 2)),
    Case("reshape__zero_right", X, lambda x: mb.reshape(x=x, shape=[1, -1, 1, 0]), lambda x: x.reshape(1, 6, 1, 4), ios=17),
    Case(
        "reshape__computed",
        {"x": real(2, 3, 4), "y": real(3, 8)},
        lambda x, y: mb.reshape(x=x, shape=mb.shape(x=y)),
        lambda x, y: x.reshape(3, 8),
    ),
    Case(
        "reshape_like",
        {"x": real(4, 6), "a": real(2, 3, 5), "b": real(7, 2, 2)},
        lambda x, a, b: mb.reshape_like(x=x, ref_tensors=(a, b), begins=(0, 1), ends=(2, 0), end_masks=(False, True)),
        lambda x, a, b: x.reshape(2, 3, 2, 2),
        ios=16,
    ),
    Case("expand_dims", X, lambda x: mb.expand_dims(x=x, axes=[-1, 1]), lambda x: x[:, None, :, :, None]),
    Case("squeeze", {"x": real(1, 3, 1, 2)}, lambda x: mb.squeeze(x=x, axes=[-2, 0]), lambda x: x.reshape(3, 2)),
    Case("squeeze__all", {"x": real(1, 3, 1, 2)}, lambda x: mb.squeeze(x=x), lambda x: x.reshape(3, 2)),
    Case("squeeze__not_one", {"x": real(2, 1, 3)}, lambda x: mb.squeeze(x=x, axes=[0, 1]), lambda x: x.reshape(2, 3)),
    Case("transpose", X, lambda x: mb.transpose(x=x, perm=[2, 0, 1]), lambda x: x.transpose(2, 0, 1)),
    Case("transpose__negative", X, lambda x: mb.transpose(x=x, perm=[0, -1, -2]), lambda x: x.transpose(0, 2, 1)),
    Case("flatten2d", X, lambda x: mb.flatten2d(x=x, axis=-1), lambda x: x.reshape(6, 4)),
    Case("flatten2d__zero", X, lambda x: mb.flatten2d(x=x, axis=0), lambda x: x.reshape(1, 24)),
    Case(
        "concat",
        {"a": real(2, 3), "b": real(2, 1)},
        lambda a, b: mb.concat(values=(a, np.ones((2, 2), np.float32), b), axis=-1),
        lambda a, b: np.concatenate([a, np.ones((2, 2)), b], -1),
    ),
    Case(
        "concat__interleave",
        {"a": real(2, 3), "b": real(2, 3)},
        lambda a, b: mb.concat(values=(a, b), axis=-1, interleave=True),
        lambda a, b: np.stack([a, b], -1).reshape(2, 6),
    ),
    Case(
        "stack",
        {"a": real(2, 3), "b": real(2, 3)},
        lambda a, b: mb.stack(values=(a, b), axis=-1),
        lambda a, b: np.stack([a, b], -1),
    ),
    Case("split", X, lambda x: mb.split(x=x, num_splits=2, axis=-1), lambda x: (x[..., :2], x[..., 2:])),
    Case("split__sizes", X, lambda x: mb.split(x=x, split_sizes=[1, 2], axis=1), lambda x: (x[:, :1], x[:, 1:])),
    Case("tile", X, lambda x: mb.tile(x=x, reps=[1, 2, 3]), lambda x: np.tile(x, (1, 2, 3))),
    Case("reverse", X, lambda x: mb.reverse(x=x, axes=[-1, 0]), lambda x: x[::-1, :, ::-1]),
    Case("reverse__all", X, lambda x: mb.reverse(x=x), lambda x: x[::-1, ::-1, ::-1]),
    Case(
        "reverse_sequence",
        {"x": real(3, 2, 5), "n": np.array([0, 2, 5], np.int32)},
        lambda x, n: mb.reverse_sequence(x=x, lengths=n, seq_axis=-1, batch_axis=0),
        lambda x, n: np.stack([np.concatenate([s[:, :k][:, ::-1], s[:, k:]], 1) for s, k in zip(x, n, strict=True)]),
    ),
    Case("pixel_shuffle", IMAGE, lambda x: mb.pixel_shuffle(x=x, upscale_factor=2), lambda x: _pixel_shuffle(x, 2)),
    Case(
        "pixel_unshuffle",
        IMAGE,
        lambda x: mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(2)),
        lambda x: _pixel_unshuffle(x, 2),
        ios=16,
    ),
    Case("depth_to_space", IMAGE, lambda x: mb.depth_to_space(x=x, block_size=2), lambda x: _depth_to_space(x, 2)),
    Case("space_to_depth", IMAGE, lambda x: mb.space_to_depth(x=x, block_size=2), lambda x: _space_to_depth(x, 2)),
    Case(
        "space_to_batch",
        IMAGE,
        lambda x: mb.space_to_batch(x=x, block_shape=[2, 3], paddings=[[1, 1], [0, 3]]),
        _space_to_batch,
    ),
    Case(
        "batch_to_space",
        {"x": real(12, 2, 3, 2)},
        lambda x: mb.batch_to_space(x=x, block_shape=[2, 3], crops=[[1, 1], [0, 2]]),
        _batch_to_space,
    ),
]


def _updated(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    y = x.copy()
    y[1:, ::2, -1] = u
    return y


def _updated_backwards(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    y = x.copy()
    y[0, 2:0:-1] = u
    return y


SLICES = [
    Case(
        "slice_by_index",
        X,
        lambda x: mb.slice_by_index(x=x, begin=[0, 1, -3], end=[1, 3, -1], stride=[1, 1, 1]),
        lambda x: x[0:1, 1:3, -3:-1],
    ),
    Case(
        "slice_by_index__masks",
        X,
        lambda x: mb.slice_by_index(
            x=x,
            begin=[1, 2, 1],
            end=[9, 1, 0],
            stride=[1, 2, 1],
            begin_mask=[False, True, False],
            end_mask=[False, True, True],
            squeeze_mask=[True, False, False],
        ),
        lambda x: x[1, ::2, 1:],
    ),
    Case(
        "slice_by_index__backwards",
        X,
        lambda x: mb.slice_by_index(x=x, begin=[0, -1, 3], end=[2, 0, 0], stride=[1, -1, -2], end_mask=[False, False, True]),
        lambda x: x[0:2, -1:0:-1, 3::-2],
    ),
    Case(
        "slice_by_index__last",
        X,
        lambda x: mb.slice_by_index(x=x, begin=[-1, 0, -1], end=[0, 3, 0], squeeze_mask=[True, False, True]),
        lambda x: x[-1, :, -1],
    ),
    Case(
        "slice_by_index__computed",
        {"x": real(2, 3, 4), "b": np.array([0, 1, 2], np.int32)},
        lambda x, b: mb.slice_by_index(x=x, begin=b, end=[2, 3, 4]),
        lambda x, b: x[:, 1:, 2:],
    ),
    Case("slice_by_size", X, lambda x: mb.slice_by_size(x=x, begin=[0, 1, -2], size=[-1, 2, 1]), lambda x: x[:, 1:3, 2:3]),
    Case(
        "slice_update",
        {"x": real(2, 3, 4), "u": real(1, 2)},
        lambda x, u: mb.slice_update(
            x=x,
            update=u,
            begin=[1, 0, -1],
            end=[2, 3, 0],
            stride=[1, 2, 1],
            squeeze_mask=[False, False, True],
        ),
        _updated,
        ios=18,
    ),
    Case(
        "slice_update__backwards",
        {"x": real(2, 3, 4), "u": real(1, 2, 4)},
        lambda x, u: mb.slice_update(x=x, update=u, begin=[0, 2, 0], end=[1, 0, 4], stride=[1, -1, 1]),
        _updated_backwards,
        ios=18,
    ),
    Case(
        "sliding_windows",
        {"x": real(2, 7, 3)},
        lambda x: mb.sliding_windows(x=x, axis=-2, size=3, stride=2),
        lambda x: np.stack([x[:, i : i + 3] for i in (0, 2, 4)], 1),
    ),
]

SHAPE_CASES: list[Case] = [*_reductions(), *SHAPES, *SLICES]
