"""Cases for matrix products, attention and norms; torch and numpy are the oracle."""

from __future__ import annotations

import numpy as np

from tests.mil.mil_cases_elementwise import real, whole
from tests.mil.mil_harness import Case, mb

_LINEAR, _BIAS = real(6, 4), real(6)


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)) @ v


def _qkv() -> dict[str, np.ndarray]:
    return {"q": real(1, 2, 5, 4), "k": real(1, 2, 7, 4), "v": real(1, 2, 7, 3)}


_MASK = np.where(np.arange(7) < 4, 0, -1e4).astype(np.float32)

PRODUCTS = [
    Case(
        "linear",
        {"x": real(2, 3, 4)},
        lambda x: mb.linear(x=x, weight=_LINEAR, bias=_BIAS),
        lambda x: x @ _LINEAR.T + _BIAS,
    ),
    *(
        Case(
            f"matmul__{i}",
            {"x": real(*shapes[0]), "y": real(*shapes[1])},
            lambda x, y, tx=tx, ty=ty: mb.matmul(x=x, y=y, transpose_x=tx, transpose_y=ty),
            lambda x, y, tx=tx, ty=ty: np.matmul(x.swapaxes(-1, -2) if tx else x, y.swapaxes(-1, -2) if ty else y),
        )
        for i, (shapes, tx, ty) in enumerate(
            [
                (((4, 3), (3, 2)), False, False),
                (((10, 4, 3), (5, 10, 3, 2)), False, False),
                (((2, 3, 4), (2, 3, 5)), True, False),
                (((2, 4, 3), (5, 3)), False, True),
                (((1, 3, 4), (7, 2, 3)), True, True),
            ]
        )
    ),
    Case(
        "matmul__vector",
        {"x": real(3), "y": real(3, 4)},
        lambda x, y: mb.matmul(x=x, y=y),
        lambda x, y: np.matmul(x, y),
    ),
    Case("matmul__int", {"x": whole(2, 3), "y": whole(3, 2)}, lambda x, y: mb.matmul(x=x, y=y), lambda x, y: x @ y),
    *(
        Case(
            f"einsum__{i}",
            {"x": real(*a), "y": real(*b)},
            lambda x, y, e=e: mb.einsum(values=(x, y), equation=e),
            lambda x, y, e=e: _einsum(e, x, y),
        )
        for i, (e, a, b) in enumerate(
            [
                ("nchw,nwhu->nchu", (2, 3, 1, 4), (2, 4, 1, 5)),
                ("nchw,nwhu->nchu", (2, 3, 6, 4), (2, 4, 6, 5)),
                ("abcd,adce->abce", (2, 3, 6, 4), (1, 4, 1, 5)),
                ("chw,whr->chr", (3, 6, 4), (4, 6, 5)),
            ]
        )
    ),
    Case(
        "scaled_dot_product_attention",
        _qkv(),
        lambda q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v),
        lambda q, k, v: _attention(q, k, v, None),
        ios=18,
    ),
    Case(
        "scaled_dot_product_attention__mask",
        _qkv(),
        lambda q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=np.tile(_MASK, (5, 1))),
        lambda q, k, v: _attention(q, k, v, _MASK),
        ios=18,
    ),
    Case(
        "scaled_dot_product_attention__allowed",
        _qkv(),
        lambda q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=np.tile(_MASK == 0, (5, 1))),
        lambda q, k, v: _attention(q, k, v, _MASK),
        ios=18,
    ),
]


def _einsum(equation: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Axes of size 1 repeated first: numpy's einsum broadcasts only with an ellipsis."""
    if x.ndim == 4:
        batch, head = max(x.shape[0], y.shape[0]), max(x.shape[2], y.shape[2])
        x = np.broadcast_to(x, (batch, x.shape[1], head, x.shape[3]))
        y = np.broadcast_to(y, (batch, y.shape[1], head, y.shape[3]))
    return np.einsum(equation, x, y)


def _normal(x: np.ndarray, axes: tuple[int, ...], eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    return ((x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)).astype(np.float32)


_G, _B = real(4, low=0.5), real(4)
_G2, _B2 = real(3, 4, low=0.5), real(3, 4)
_MEAN, _VAR = real(3), real(3, low=0.3)

NORMS = [
    Case(
        "layer_norm__last",
        {"x": real(2, 3, 4)},
        lambda x: mb.layer_norm(x=x, axes=[-1], gamma=_G, beta=_B, epsilon=1e-3),
        lambda x: _normal(x, (2,), 1e-3) * _G + _B,
    ),
    Case(
        "layer_norm__two",
        {"x": real(2, 3, 4)},
        lambda x: mb.layer_norm(x=x, axes=[1, -1], gamma=_G2, beta=_B2, epsilon=1e-5),
        lambda x: _normal(x, (1, 2), 1e-5) * _G2 + _B2,
    ),
    Case(
        "layer_norm__channels_first",
        {"x": real(2, 4, 1, 5)},
        lambda x: mb.layer_norm(x=x, axes=[1], gamma=_G, beta=_B, epsilon=1e-5),
        lambda x: _normal(x, (1,), 1e-5) * _G[:, None, None] + _B[:, None, None],
    ),
    Case("layer_norm__bare", {"x": real(2, 4)}, lambda x: mb.layer_norm(x=x, axes=[1]), lambda x: _normal(x, (1,), 1e-5)),
    Case(
        "instance_norm",
        {"x": real(2, 3, 4, 5)},
        lambda x: mb.instance_norm(x=x, gamma=_G[:3], beta=_B[:3], epsilon=1e-4),
        lambda x: _normal(x, (2, 3), 1e-4) * _G[:3, None, None] + _B[:3, None, None],
    ),
    Case(
        "batch_norm",
        {"x": real(2, 3, 4)},
        lambda x: mb.batch_norm(x=x, mean=_MEAN, variance=_VAR, gamma=_G[:3], beta=_B[:3], epsilon=1e-3),
        lambda x: (x - _MEAN[:, None]) / np.sqrt(_VAR[:, None] + 1e-3) * _G[:3, None] + _B[:3, None],
    ),
    Case(
        "l2_norm",
        {"x": real(2, 3, 4, 5)},
        lambda x: mb.l2_norm(x=x, epsilon=1e-3),
        lambda x: x / np.sqrt(np.square(x).sum((1, 2, 3), keepdims=True) + 1e-3),
    ),
    Case(
        "local_response_norm",
        {"x": real(1, 6, 3, 3)},
        lambda x: mb.local_response_norm(x=x, size=3, alpha=0.5, beta=0.6, k=1.2),
        lambda x: x / (1.2 + 0.5 / 3 * _neighbours(np.square(x))) ** 0.6,
    ),
]


def _neighbours(x: np.ndarray) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    return padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]


PRODUCT_CASES: list[Case] = [*PRODUCTS, *NORMS]
