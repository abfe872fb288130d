"""Cases for convolutions, pooling, matrix products, norms, attention and resizing; torch and numpy are the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from tests.mil.mil_cases_elementwise import real, whole
from tests.mil.mil_harness import Case, mb


def t(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


def _conv_same(x: np.ndarray, w: np.ndarray, stride: int, dilation: int, lower: bool) -> np.ndarray:
    """`same` padding by its definition: ceil(size / stride) results, the odd cell behind (or in front)."""
    pads: list[int] = []
    for size, k in zip(x.shape[:1:-1], w.shape[:1:-1], strict=True):
        total = max(0, (int(np.ceil(size / stride)) - 1) * stride + (k - 1) * dilation + 1 - size)
        pads += [total - total // 2, total // 2] if lower else [total // 2, total - total // 2]
    return F.conv2d(F.pad(t(x), pads), t(w), stride=stride, dilation=dilation).numpy()


_W3 = real(4, 3, 3)
_W2 = real(6, 4, 3, 2)
_DEPTHWISE = real(4, 1, 3, 3)
_GROUPED = real(6, 2, 3, 3)
_W5 = real(4, 2, 2, 3, 2)
_BIAS = real(6)
_T2 = real(4, 3, 3, 2)
_TG = real(4, 3, 2, 2)
_T1 = real(4, 3, 4)

CONVOLUTIONS = [
    Case(
        "conv__1d",
        {"x": real(2, 3, 9)},
        lambda x: mb.conv(x=x, weight=_W3, strides=[2], pad_type="custom", pad=[1, 2], dilations=[2]),
        lambda x: F.conv1d(F.pad(t(x), (1, 2)), t(_W3), stride=2, dilation=2),
    ),
    Case(
        "conv__2d_bias",
        {"x": real(2, 4, 7, 6)},
        lambda x: mb.conv(x=x, weight=_W2, bias=_BIAS, pad_type="custom", pad=[1, 1, 0, 0], strides=[2, 1]),
        lambda x: F.conv2d(t(x), t(_W2), t(_BIAS), padding=(1, 0), stride=(2, 1)),
    ),
    *(
        Case(
            f"conv__{kind}_{stride}",
            {"x": real(1, 4, 8, 7)},
            lambda x, kind=kind, stride=stride: mb.conv(x=x, weight=_W2, pad_type=kind, strides=[stride, stride]),
            lambda x, kind=kind, stride=stride: _conv_same(x, _W2, stride, 1, kind == "same_lower"),
            ios=16,
        )
        for kind in ("same", "same_lower")
        for stride in (1, 2)
    ),
    Case(
        "conv__same_dilated",
        {"x": real(1, 4, 8, 7)},
        lambda x: mb.conv(x=x, weight=_W2, pad_type="same", dilations=[2, 2]),
        lambda x: _conv_same(x, _W2, 1, 2, False),
    ),
    Case(
        "conv__depthwise",
        {"x": real(1, 4, 6, 6)},
        lambda x: mb.conv(x=x, weight=_DEPTHWISE, pad_type="valid", groups=4),
        lambda x: F.conv2d(t(x), t(_DEPTHWISE), groups=4),
    ),
    Case(
        "conv__grouped",
        {"x": real(1, 4, 6, 6)},
        lambda x: mb.conv(x=x, weight=_GROUPED, bias=_BIAS, pad_type="same", groups=2),
        lambda x: F.conv2d(t(x), t(_GROUPED), t(_BIAS), padding=1, groups=2),
    ),
    Case(
        "conv__3d",
        {"x": real(1, 2, 4, 5, 4)},
        lambda x: mb.conv(x=x, weight=_W5, pad_type="custom", pad=[1, 0, 1, 1, 0, 0], strides=[1, 2, 1]),
        lambda x: F.conv3d(F.pad(t(x), (0, 0, 1, 1, 1, 0)), t(_W5), stride=(1, 2, 1)),
    ),
    Case(
        "conv__computed_weight",
        {"x": real(1, 3, 9), "w": real(4, 3, 3)},
        lambda x, w: mb.conv(x=x, weight=w, pad_type="valid"),
        lambda x, w: F.conv1d(t(x), t(w)),
    ),
    Case(
        "conv_transpose__valid",
        {"x": real(1, 4, 4, 5)},
        lambda x: mb.conv_transpose(x=x, weight=_T2, bias=_BIAS[:3], strides=[2, 3], pad_type="valid"),
        lambda x: F.conv_transpose2d(t(x), t(_T2), t(_BIAS[:3]), stride=(2, 3)),
    ),
    Case(
        "conv_transpose__custom",
        {"x": real(1, 4, 4, 5)},
        lambda x: mb.conv_transpose(x=x, weight=_T2, strides=[2, 2], pad_type="custom", pad=[1, 0, 0, 1], dilations=[2, 1]),
        lambda x: F.conv_transpose2d(t(x), t(_T2), stride=2, dilation=(2, 1))[:, :, 1:, :-1],
    ),
    Case(
        "conv_transpose__same",
        {"x": real(1, 4, 5)},
        lambda x: mb.conv_transpose(x=x, weight=_T1, strides=[2], pad_type="same"),
        lambda x: F.conv_transpose1d(t(x), t(_T1), stride=2, padding=1),
    ),
    Case(
        "conv_transpose__same_odd",
        {"x": real(1, 4, 5)},
        lambda x: mb.conv_transpose(x=x, weight=_T1[:, :, :3], strides=[2], pad_type="same"),
        lambda x: F.conv_transpose1d(t(x), t(_T1[:, :, :3]), stride=2)[:, :, :10],
    ),
    Case(
        "conv_transpose__output_shape",
        {"x": real(1, 4, 4, 4)},
        lambda x: mb.conv_transpose(
            x=x,
            weight=_TG,
            bias=_BIAS,
            strides=[2, 2],
            pad_type="custom",
            pad=[0, 0, 0, 0],
            groups=2,
            output_shape=[1, 6, 9, 9],
        ),
        lambda x: F.conv_transpose2d(t(x), t(_TG), t(_BIAS), stride=2, groups=2, output_padding=1),
    ),
]


def _pool(x: np.ndarray, kind: str, kernel: int, stride: int, pads: tuple[int, ...], **options: Any) -> np.ndarray:
    """Windows written out: kind is max, mean (of cells inside only, or all) or l2; 2-D, pads (top, bottom, left, right)."""
    top, bottom, left, right = pads
    fill = -np.inf if kind == "max" else 0.0
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    inside = np.pad(np.ones(x.shape[2:]), ((top, bottom), (left, right)))
    rows, cols = ((n - kernel) // stride + 1 for n in padded.shape[2:])
    out = np.zeros((*x.shape[:2], rows, cols), np.float32)
    for i in range(rows):
        for j in range(cols):
            window = padded[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
            count = inside[i * stride : i * stride + kernel, j * stride : j * stride + kernel].sum()
            if kind == "max":
                out[:, :, i, j] = window.max((2, 3))
            elif kind == "l2":
                out[:, :, i, j] = np.sqrt(np.square(window).sum((2, 3)))
            else:
                out[:, :, i, j] = window.sum((2, 3)) / (count if options["exclude"] else kernel**2)
    return out


POOLING = [
    Case(
        "max_pool__custom",
        {"x": real(1, 2, 7, 6)},
        lambda x: mb.max_pool(x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 0, 0, 1]),
        lambda x: _pool(x, "max", 3, 2, (1, 0, 0, 1)),
    ),
    Case(
        "max_pool__ceil",
        {"x": real(1, 2, 8, 6)},
        lambda x: mb.max_pool(x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1], ceil_mode=True),
        lambda x: F.max_pool2d(t(x), 3, 2, 1, ceil_mode=True),
    ),
    Case(
        "max_pool__3d",
        {"x": real(1, 2, 4, 5, 6)},
        lambda x: mb.max_pool(x=x, kernel_sizes=[2, 2, 3], strides=[2, 1, 1], pad_type="valid"),
        lambda x: F.max_pool3d(t(x), (2, 2, 3), (2, 1, 1)),
    ),
    *(
        Case(
            f"avg_pool__{exclude}",
            {"x": real(1, 2, 7, 6)},
            lambda x, exclude=exclude: mb.avg_pool(
                x=x,
                kernel_sizes=[3, 3],
                strides=[2, 2],
                pad_type="custom",
                pad=[1, 1, 0, 1],
                exclude_padding_from_average=exclude,
            ),
            lambda x, exclude=exclude: _pool(x, "mean", 3, 2, (1, 1, 0, 1), exclude=exclude),
        )
        for exclude in (False, True)
    ),
    Case(
        "avg_pool__same",
        {"x": real(1, 2, 7, 7)},
        lambda x: mb.avg_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="same", exclude_padding_from_average=True),
        lambda x: _pool(x, "mean", 2, 2, (0, 1, 0, 1), exclude=True),
    ),
    Case(
        "avg_pool__ceil",
        {"x": real(1, 2, 8, 8)},
        lambda x: mb.avg_pool(x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1], ceil_mode=True),
        lambda x: F.avg_pool2d(t(x), 3, 2, 1, ceil_mode=True),
    ),
    Case(
        "avg_pool__1d",
        {"x": real(1, 2, 8)},
        lambda x: mb.avg_pool(x=x, kernel_sizes=[4], strides=[2], pad_type="valid"),
        lambda x: F.avg_pool1d(t(x), 4, 2),
    ),
    Case(
        "l2_pool",
        {"x": real(1, 2, 7, 6)},
        lambda x: mb.l2_pool(x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 0, 0, 1]),
        lambda x: _pool(x, "l2", 3, 2, (1, 0, 0, 1)),
    ),
]

_LINEAR = real(6, 4)


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


def _grid(size: int, count: int, mode: str) -> np.ndarray:
    """Sampling points, formula by formula from the documentation of resize_bilinear."""
    i = np.arange(count)
    if mode == "ALIGN_CORNERS" and count == 1:
        return np.array([(size - 1) / 2])
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        points = i * (size - 1) / max(count - 1, 1)
    elif mode == "DEFAULT":
        points = i * (size - size / count) / max(count - 1, 1)
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / count
        points = 0.5 * delta + i * delta
    else:
        points = i * size / count + 0.5 * size / count - 0.5
    return np.minimum(size - 1, np.maximum(0, points))


def _resize(x: np.ndarray, height: int, width: int, mode: str) -> np.ndarray:
    for axis, count in ((-2, height), (-1, width)):
        points = _grid(x.shape[axis], count, mode)
        low = np.floor(points).astype(int)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        part = (points - low).reshape((-1, 1) if axis == -2 else (-1,))
        x = np.take(x, low, axis) * (1 - part) + np.take(x, high, axis) * part
    return x.astype(np.float32)


_MODES = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")
_COORDS = real(2, 3, 5, 2, low=-1.6, high=1.6)


def _grid_sample(x: np.ndarray, c: np.ndarray, mode: str, padding: str, align: bool) -> torch.Tensor:
    return F.grid_sample(t(x), t(c), mode=mode, padding_mode=padding, align_corners=align)


def _resample(padding: str, torch_padding: str, method: str, align: bool) -> Case:
    return Case(
        f"resample__{padding}_{method}_{align}",
        {"x": real(2, 3, 4, 5), "c": _COORDS},
        lambda x, c: mb.resample(
            x=x,
            coordinates=c,
            sampling_mode=method,
            padding_mode=padding,
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=align,
        ),
        lambda x, c: _grid_sample(x, c, method, torch_padding, align),
    )


_MATRIX = np.array([[0.9, 0.2, 0.1, -0.3, 1.1, -0.2]], np.float32)
_BOXES = np.array([[0.5, 1.0, 3.0, 4.5], [1.0, 0.0, 6.0, 2.0]], np.float32)
_CENTRED = np.stack(  # the same boxes as centre and size, in fractions of a 6 x 7 image's last cell
    [
        (_BOXES[:, 0] + _BOXES[:, 2]) / 2 / 5,
        (_BOXES[:, 1] + _BOXES[:, 3]) / 2 / 6,
        (_BOXES[:, 2] - _BOXES[:, 0]) / 5,
        (_BOXES[:, 3] - _BOXES[:, 1]) / 6,
    ],
    1,
).astype(np.float32)


def _crops(x: np.ndarray, height: int, width: int, mode: str, pad: float) -> np.ndarray:
    """Box i (top, left, bottom, right) of image i; a box has bottom - top + 1 rows for the grid formulas."""
    out = np.zeros((2, x.shape[1], height, width), np.float32)
    for n, (top, left, bottom, right) in enumerate(_BOXES):
        rows = top + _real_grid(bottom - top + 1, height, mode)
        cols = left + _real_grid(right - left + 1, width, mode)
        for i, r in enumerate(rows):
            for j, c in enumerate(cols):
                if not (0 <= r <= x.shape[2] - 1 and 0 <= c <= x.shape[3] - 1):
                    out[n, :, i, j] = pad
                    continue
                y0, x0 = int(r), int(c)
                y1, x1 = min(y0 + 1, x.shape[2] - 1), min(x0 + 1, x.shape[3] - 1)
                top_row = x[n, :, y0, x0] * (1 - (c - x0)) + x[n, :, y0, x1] * (c - x0)
                low_row = x[n, :, y1, x0] * (1 - (c - x0)) + x[n, :, y1, x1] * (c - x0)
                out[n, :, i, j] = top_row * (1 - (r - y0)) + low_row * (r - y0)
    return out


def _real_grid(size: float, count: int, mode: str) -> np.ndarray:
    return _grid(size, count, mode)  # type: ignore[arg-type]


RESIZING = [
    *(
        Case(
            f"resize_bilinear__{mode.lower()}_{height}x{width}",
            {"x": real(1, 2, 4, 5)},
            lambda x, m=mode, h=height, w=width: mb.resize_bilinear(
                x=x, target_size_height=h, target_size_width=w, sampling_mode=m
            ),
            lambda x, m=mode, h=height, w=width: _resize(x, h, w, m),
        )
        for mode in _MODES
        for height, width in ((7, 9), (3, 2), (1, 5))
    ),
    Case(
        "upsample_bilinear__align",
        {"x": real(1, 2, 3, 4)},
        lambda x: mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=3, align_corners=True),
        lambda x: F.interpolate(t(x), (6, 12), mode="bilinear", align_corners=True),
    ),
    Case(
        "upsample_bilinear__half",
        {"x": real(1, 2, 3, 4)},
        lambda x: mb.upsample_bilinear(x=x, scale_factor_height=2.5, scale_factor_width=1.6, align_corners=False),
        lambda x: F.interpolate(
            t(x), scale_factor=(2.5, 1.6), mode="bilinear", align_corners=False, recompute_scale_factor=True
        ),
    ),
    Case(
        "upsample_bilinear__plain",
        {"x": real(1, 2, 3, 4)},
        lambda x: mb.upsample_bilinear(
            x=x, scale_factor_height=2, scale_factor_width=2, align_corners=False, half_pixel_centers=False
        ),
        lambda x: _resize(x, 6, 8, "DEFAULT"),
        ios=16,
    ),
    Case(
        "upsample_nearest_neighbor",
        {"x": real(1, 2, 3, 4)},
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
        lambda x: x.repeat(2, 2).repeat(3, 3),
    ),
    Case(
        "upsample_nearest_neighbor__fraction",
        {"x": real(1, 2, 4, 4)},
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=1.5, scale_factor_width=0.5),
        lambda x: F.interpolate(t(x), (6, 2), mode="nearest"),
    ),
    Case(
        "resize_nearest_neighbor",
        {"x": real(1, 2, 5, 7)},
        lambda x: mb.resize_nearest_neighbor(x=x, target_size_height=8, target_size_width=3),
        lambda x: F.interpolate(t(x), (8, 3), mode="nearest"),
    ),
    Case(
        "resize__linear",
        {"x": real(2, 3, 4)},
        lambda x: mb.resize(
            x=x, shape=np.array([9, 0, 7], np.int32), resized_dims=np.uint32(2), sampling_mode="UNALIGN_CORNERS"
        ),
        lambda x: _resize(x, 3, 7, "UNALIGN_CORNERS"),
        ios=17,
    ),
    Case(
        "resize__nearest",
        {"x": real(2, 3, 4)},
        lambda x: mb.resize(
            x=x, shape=np.array([5, 6], np.int32), resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR"
        ),
        lambda x: F.interpolate(t(x)[None], (5, 6), mode="nearest")[0],
        ios=17,
    ),
    Case(
        "crop",
        {"x": real(1, 2, 6, 7)},
        lambda x: mb.crop(x=x, crop_height=[1, 2], crop_width=[0, 3]),
        lambda x: x[:, :, 1:4, :4],
    ),
    *(
        _resample(padding, torch_padding, method, align)
        for padding, torch_padding, align in (
            ("constant", "zeros", True),
            ("constant", "zeros", False),
            ("border", "border", False),
            ("reflection", "reflection", True),
            ("symmetric", "reflection", False),
        )
        for method in ("bilinear", "nearest")
    ),
    Case(
        "affine",
        {"x": real(1, 2, 4, 5)},
        lambda x: mb.affine(
            x=x,
            transform_matrix=_MATRIX,
            output_height=3,
            output_width=6,
            sampling_mode="bilinear",
            padding_mode="constant",
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=True,
        ),
        lambda x: _grid_sample(
            x, F.affine_grid(t(_MATRIX.reshape(1, 2, 3)), [1, 2, 3, 6], align_corners=True).numpy(), "bilinear", "zeros", True
        ),
    ),
    *(
        Case(
            f"crop_resize__{mode.lower()}",
            {"x": real(2, 3, 6, 7)},
            lambda x, m=mode: mb.crop_resize(
                x=x,
                boxes=_BOXES,
                box_indices=np.array([0, 1], np.int32),
                target_height=3,
                target_width=4,
                sampling_mode=m,
                pad_value=9.0,
            ),
            lambda x, m=mode: _crops(x, 3, 4, m, 9.0),
            ios=17,
        )
        for mode in _MODES
    ),
    Case(
        "crop_resize__indexed_roi",
        {"x": real(1, 3, 6, 7)},
        lambda x: mb.crop_resize(
            x=x,
            roi=np.concatenate([[[0], [0]], _BOXES[:, [1, 0, 3, 2]]], 1).astype(np.float32).reshape(2, 1, 5, 1, 1),
            target_height=3,
            target_width=4,
            box_coordinate_mode="CORNERS_WIDTH_FIRST",
            sampling_mode="ALIGN_CORNERS",
        ),
        lambda x: _crops(x.repeat(2, 0), 3, 4, "ALIGN_CORNERS", 0.0)[:, None],
    ),
    Case(
        "crop_resize__roi_of_every_image",
        {"x": real(2, 3, 6, 7)},
        lambda x: mb.crop_resize(
            x=x,
            roi=_CENTRED.reshape(2, 1, 4, 1, 1),
            target_height=2,
            target_width=3,
            normalized_coordinates=True,
            box_coordinate_mode="CENTER_SIZE_HEIGHT_FIRST",
            sampling_mode="STRICT_ALIGN_CORNERS",
        ),
        lambda x: np.stack([_crops(x[[i, i]], 2, 3, "STRICT_ALIGN_CORNERS", 0.0) for i in range(2)], 1),
        tolerance=1e-4,
    ),
]

LAYERS: list[Case] = [*CONVOLUTIONS, *POOLING, *PRODUCTS, *NORMS, *RESIZING]
