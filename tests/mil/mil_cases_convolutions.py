"""Cases for convolutions and pooling; torch and numpy are the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.nn import functional as F

from tests.mil.mil_cases_elementwise import real
from tests.mil.mil_harness import Case, mb, t


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

CONVOLUTION_CASES: list[Case] = [*CONVOLUTIONS, *POOLING]
