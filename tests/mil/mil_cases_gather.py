"""Cases for gather and scatter, padding, sorting and choosing; numpy (or loops) is the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.mil.mil_cases_elementwise import real, whole
from tests.mil.mil_cases_shapes import X
from tests.mil.mil_harness import Case, mb

_IDX = np.array([[0, 2], [3, -1]], np.int32)
_ALONG = whole(2, 3, 2, low=0, high=4)
_BATCH = np.array([[0, 2, 1], [3, 3, 0]], np.int32)

_SCATTERED = np.array([1, 3, 1], np.int32)  # one place twice: add, sub, mul, max, min must count both
_UPDATE: dict[str, Callable[[float, float], float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": max,
    "min": min,
}


def _scatter(data: np.ndarray, indices: np.ndarray, updates: np.ndarray, mode: str) -> np.ndarray:
    """Along axis 1, one update after the other."""
    out = data.copy()
    for k, place in enumerate(indices):
        for i in np.ndindex(data.shape[0], data.shape[2]):
            value = updates[i[0], k, i[1]]
            old = out[i[0], place, i[1]]
            out[i[0], place, i[1]] = value if mode == "update" else _UPDATE[mode](old, value)
    return out


def _scatter_along(data: np.ndarray, indices: np.ndarray, updates: np.ndarray, mode: str) -> np.ndarray:
    out = data.copy()
    for i in np.ndindex(*indices.shape):
        place = (i[0], indices[i], i[2])
        out[place] = updates[i] if mode == "update" else _UPDATE[mode](out[place], updates[i])
    return out


def _scatter_nd(data: np.ndarray, indices: np.ndarray, updates: np.ndarray, mode: str) -> np.ndarray:
    out = data.copy()
    for i in np.ndindex(*indices.shape[:-1]):
        place = tuple(indices[i])
        for j in np.ndindex(*out[place].shape):
            at = place + j
            out[at] = updates[i + j] if mode == "update" else _UPDATE[mode](out[at], updates[i + j])
    return out


_ND = np.array([[0, 1], [1, 3], [0, 1]], np.int32)
_ONCE = np.array([[0, 1], [1, 3], [0, 0]], np.int32)


def _scatters() -> list[Case]:
    cases = []
    for mode in ("update", *_UPDATE):
        once = mode == "update"  # which of two updates of one place wins is not defined
        indices = np.array([1, 3, 0], np.int32) if once else _SCATTERED
        cases.append(
            Case(
                f"scatter__{mode}",
                {"d": real(2, 4, 2), "u": real(2, 3, 2, low=0.5)},
                lambda d, u, m=mode, i=indices: mb.scatter(data=d, indices=i, updates=u, axis=1, mode=m),
                lambda d, u, m=mode, i=indices: _scatter(d, i, u, m),
            )
        )
        along = np.broadcast_to(indices[None, :, None], (2, 3, 2)).copy()
        cases.append(
            Case(
                f"scatter_along_axis__{mode}",
                {"d": real(2, 4, 2), "u": real(2, 3, 2, low=0.5)},
                lambda d, u, m=mode, i=along: mb.scatter_along_axis(data=d, indices=i, updates=u, axis=-2, mode=m),
                lambda d, u, m=mode, i=along: _scatter_along(d, i, u, m),
            )
        )
        places = _ONCE if once else _ND
        cases.append(
            Case(
                f"scatter_nd__{mode}",
                {"d": real(2, 4, 2), "u": real(3, 2, low=0.5)},
                lambda d, u, m=mode, i=places: mb.scatter_nd(data=d, indices=i, updates=u, mode=m),
                lambda d, u, m=mode, i=places: _scatter_nd(d, i, u, m),
            )
        )
    return cases


GATHERS = [
    Case("gather", {"x": real(4, 3)}, lambda x: mb.gather(x=x, indices=_IDX, axis=0), lambda x: np.take(x, _IDX, 0)),
    Case("gather__last", {"x": real(3, 4)}, lambda x: mb.gather(x=x, indices=_IDX, axis=-1), lambda x: np.take(x, _IDX, -1)),
    Case(
        "gather__scalar",
        {"x": real(3, 4)},
        lambda x: mb.gather(x=x, indices=np.int32(2), axis=1),
        lambda x: x[:, 2],
        ios=17,
    ),
    Case(
        "gather__batch",
        {"x": real(2, 4, 5)},
        lambda x: mb.gather(x=x, indices=_BATCH, axis=1, batch_dims=1),
        lambda x: np.stack([x[0][_BATCH[0]], x[1][_BATCH[1]]]),
        ios=16,
    ),
    Case(
        "gather__uint16",
        {"x": real(4, 3), "i": whole(5, low=0, high=4)},
        lambda x, i: mb.gather(x=x, indices=mb.cast(x=i, dtype="uint16"), axis=0),
        lambda x, i: x[i],
        ios=17,
    ),
    Case(
        "gather_along_axis",
        {"x": real(2, 4, 2)},
        lambda x: mb.gather_along_axis(x=x, indices=_ALONG, axis=-2),
        lambda x: np.take_along_axis(x, _ALONG, -2),
    ),
    Case(
        "gather_nd",
        {"x": real(2, 4, 3)},
        lambda x: mb.gather_nd(x=x, indices=_ND),
        lambda x: x[_ND[:, 0], _ND[:, 1]],
    ),
    Case(
        "gather_nd__batch",
        {"x": real(2, 4, 3)},
        lambda x: mb.gather_nd(x=x, indices=_BATCH[:, :, None], batch_dims=1),
        lambda x: np.stack([x[0][_BATCH[0]], x[1][_BATCH[1]]]),
        ios=16,
    ),
    *_scatters(),
]


def _pad(widths: list[tuple[int, int]], mode: str, **options: Any) -> Case:
    flat = [n for pair in widths for n in pair]
    numpy_mode = {"replicate": "edge"}.get(mode, mode)
    value = {"constant_val": np.float32(1.5)} if mode == "constant" else {}
    numpy_value = {"constant_values": 1.5} if mode == "constant" else {}
    return Case(
        f"pad__{mode}_{len(widths)}",
        {"x": real(2, 3, 4, 5)},
        lambda x: mb.pad(x=x, pad=flat, mode=mode, **value),
        lambda x: np.pad(x, [(0, 0)] * (4 - len(widths)) + widths, numpy_mode, **numpy_value),  # type: ignore[call-overload]
    )


_TIES = np.array([[3, 1, 3, 2], [0, 0, -1, 5]], np.float32)
_NMS_BOXES = np.array([[[2, 2, 2, 2], [2.2, 2, 2, 2], [8, 8, 2, 2], [2, 2.1, 2, 2], [8.5, 8, 2, 2]]], np.float32)
_NMS_SCORES = np.array([[[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.6], [0.05, 0.2]]], np.float32)

REST = [
    _pad([(1, 2), (0, 3)], "constant"),
    _pad([(1, 0), (0, 1), (1, 2), (2, 0)], "constant"),
    _pad([(2, 1), (1, 4)], "reflect"),
    _pad([(1, 2), (0, 0), (3, 1)], "reflect"),
    _pad([(1, 2), (0, 3)], "replicate"),
    _pad([(2, 0), (0, 1), (1, 2), (2, 5)], "replicate"),
    Case("fill", {"x": real(2, 3)}, lambda x: mb.fill(shape=mb.shape(x=x), value=2.5), lambda x: np.full((2, 3), 2.5)),
    Case(
        "fill__int", {"x": real(2, 3)}, lambda x: mb.fill(shape=mb.shape(x=x), value=3), lambda x: np.full((2, 3), 3, np.int32)
    ),
    Case(
        "fill_like",
        {"x": real(2, 3)},
        lambda x: mb.fill_like(ref_tensor=x, value=-1.5),
        lambda x: np.full((2, 3), -1.5),
        ios=16,
    ),
    Case("shape", X, lambda x: mb.shape(x=x), lambda x: np.array(x.shape, np.int32)),
    Case(
        "range_1d",
        {"n": np.array([17], np.int32)},
        lambda n: mb.range_1d(end=mb.squeeze(x=n), start=2, step=3),
        lambda n: np.arange(2, 17, 3, dtype=np.int32),
    ),
    Case(
        "range_1d__real",
        {"n": np.array([-1.25], np.float32)},
        lambda n: mb.range_1d(end=mb.squeeze(x=n), start=1.0, step=-0.5),
        lambda n: np.arange(1, -1.25, -0.5, dtype=np.float32),
    ),
    *(
        Case(
            f"band_part__{i}",
            {"x": real(2, 4, 5)},
            lambda x, b=(low, high): mb.band_part(x=x, lower=b[0], upper=b[1]),
            lambda x, b=(low, high): np.triu(x, -b[0] if b[0] >= 0 else -9) - np.triu(x, b[1] + 1 if b[1] >= 0 else 9),
        )
        for i, (low, high) in enumerate([(0, -1), (-1, 0), (1, 2)])
    ),
    Case("cumsum", X, lambda x: mb.cumsum(x=x, axis=-1), lambda x: np.cumsum(x, -1)),
    Case(
        "cumsum__exclusive",
        X,
        lambda x: mb.cumsum(x=x, axis=1, exclusive=True),
        lambda x: np.cumsum(x, 1) - x,
    ),
    Case(
        "cumsum__reverse",
        {"x": whole(2, 5)},
        lambda x: mb.cumsum(x=x, axis=1, reverse=True),
        lambda x: np.cumsum(x[:, ::-1], 1)[:, ::-1].astype(np.int32),
    ),
    Case(
        "non_zero",
        {"x": np.array([[0, 2, 0], [1, 0, 3]], np.float32)},
        lambda x: mb.non_zero(x=x),
        lambda x: np.argwhere(x).astype(np.int32),
    ),
    Case(
        "one_hot",
        {"i": np.array([[0, 3], [2, 9]], np.int32)},
        lambda i: mb.one_hot(indices=i, one_hot_vector_size=4, axis=-1, on_value=2.0, off_value=-1.0),
        lambda i: np.where(i[..., None] == np.arange(4), 2.0, -1.0),
    ),
    Case(
        "one_hot__middle",
        {"i": np.array([[0, 3], [2, 1]], np.int32)},
        lambda i: mb.one_hot(indices=i, one_hot_vector_size=4, axis=1, on_value=1, off_value=0),
        lambda i: (i[:, None, :] == np.arange(4)[:, None]).astype(np.int32),
    ),
    Case("argsort", {"x": _TIES}, lambda x: mb.argsort(x=x), lambda x: np.argsort(-x, -1, kind="stable").astype(np.int32)),
    Case(
        "argsort__ascending",
        {"x": _TIES},
        lambda x: mb.argsort(x=x, axis=0, ascending=True),
        lambda x: np.argsort(x, 0, kind="stable").astype(np.int32),
    ),
    Case(
        "topk",
        {"x": _TIES},
        lambda x: mb.topk(x=x, k=3, axis=-1),
        lambda x: (-np.sort(-x, -1)[:, :3], np.argsort(-x, -1, kind="stable")[:, :3].astype(np.int32)),
    ),
    Case(
        "topk__smallest",
        {"x": real(4, 3)},
        lambda x: mb.topk(x=x, k=2, axis=0, ascending=True, return_indices=False),
        lambda x: np.sort(x, 0)[:2],
        ios=16,
    ),
    Case(
        "topk__uint16",
        {"x": real(4, 3)},
        lambda x: mb.topk(x=x, k=2, axis=-2, output_indices_dtype="uint16"),
        lambda x: (-np.sort(-x, 0)[:2], np.argsort(-x, 0)[:2].astype(np.int32)),
        ios=17,
    ),
    Case(
        "non_maximum_suppression",
        {"b": _NMS_BOXES, "s": _NMS_SCORES},
        lambda b, s: mb.non_maximum_suppression(boxes=b, scores=s, iou_threshold=0.5, score_threshold=0.15, max_boxes=4),
        # Box 1 overlaps 0 by 1.8 / 2.2 * ..., box 3 overlaps 0, box 4 overlaps 2 by 3 / 5.
        lambda b, s: (
            np.concatenate([b[:, [0, 2]], np.zeros((1, 2, 4))], 1),
            np.concatenate([s[:, [0, 2]], np.zeros((1, 2, 2))], 1),
            np.array([[0, 2, -1, -1]], np.int32),
            np.array([2], np.int32),
        ),
    ),
    Case(
        "non_maximum_suppression__per_class",
        {"b": _NMS_BOXES.swapaxes(1, 2).copy(), "s": _NMS_SCORES.swapaxes(1, 2).copy()},
        lambda b, s: mb.non_maximum_suppression(boxes=b, scores=s, iou_threshold=0.5, max_boxes=3, per_class_suppression=True),
        # Box 3 overlaps box 0, but its best class is the second.
        lambda b, s: (b[:, :, [0, 2, 3]], s[:, :, [0, 2, 3]], np.array([[0, 2, 3]], np.int32)),
        ios=17,
    ),
]

GATHER_CASES: list[Case] = [*GATHERS, *REST]
