"""Pooling in one to three dimensions (coremltools: iOS15/pool.py)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_deploy.export.mil.ops.convolution import Pads, flat_pads, resolve_pads
from snapgen_deploy.export.mil.ops.registry import op

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _layout(
    x: Tensor, kernel: tuple[int, ...], strides: tuple[int, ...], pad_type: str, pad: tuple[int, ...], ceil_mode: bool
) -> tuple[Pads, Pads, tuple[int, ...]]:
    """Declared padding, what the last window of ceil mode needs beyond it, and the strides.

    Ceil mode drops a window that would start in the padding behind, as PyTorch does.
    """
    sizes = tuple(x.shape[2:])
    strides = strides or (1,) * len(sizes)
    pads = resolve_pads(pad_type.lower(), sizes, kernel, strides, pad)
    extra = []
    for n, k, s, (a, b) in zip(sizes, kernel, strides, pads, strict=True):
        count = math.ceil((n + a + b - k) / s) + 1
        if (count - 1) * s >= n + a:
            count -= 1
        extra.append((0, max(0, (count - 1) * s + k - (n + a + b)) if ceil_mode else 0))
    return pads, tuple(extra), strides


@op("max_pool")
def max_pool(
    x: Tensor,
    kernel_sizes: tuple[int, ...],
    pad_type: str,
    strides: tuple[int, ...] = (),
    pad: tuple[int, ...] = (),
    ceil_mode: bool = False,
) -> Tensor:
    """Largest value of each window; padding never wins."""
    pads, extra, strides = _layout(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    x = F.pad(F.pad(x, flat_pads(pads), value=-math.inf), flat_pads(extra), value=-math.inf)
    result: Tensor = _MAX[len(kernel_sizes)](x, kernel_sizes, strides)
    return result


@op("avg_pool")
def avg_pool(
    x: Tensor,
    kernel_sizes: tuple[int, ...],
    pad_type: str,
    *,
    exclude_padding_from_average: bool = False,
    strides: tuple[int, ...] = (),
    pad: tuple[int, ...] = (),
    ceil_mode: bool = False,
) -> Tensor:
    """Mean of each window, padding counting as zeros or not at all; cells beyond the padding (ceil mode) never count."""
    pads, extra, strides = _layout(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    total = _sum(F.pad(x, flat_pads(pads)), extra, kernel_sizes, strides)
    inside = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    counted = F.pad(inside, flat_pads(pads), value=0.0 if exclude_padding_from_average else 1.0)
    return total / _sum(counted, extra, kernel_sizes, strides)


@op("l2_pool")
def l2_pool(
    x: Tensor,
    kernel_sizes: tuple[int, ...],
    pad_type: str,
    strides: tuple[int, ...] = (),
    pad: tuple[int, ...] = (),
    ceil_mode: bool = False,
) -> Tensor:
    """Square root of the sum of squares of each window."""
    pads, extra, strides = _layout(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    return _sum(F.pad(x.square(), flat_pads(pads)), extra, kernel_sizes, strides).sqrt()


def _sum(x: Tensor, extra: Pads, kernel: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    mean: Tensor = _AVERAGE[len(kernel)](F.pad(x, flat_pads(extra)), kernel, strides)
    return mean * math.prod(kernel)
