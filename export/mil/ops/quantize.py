"""Quantised activations (coremltools: iOS17/quantization_ops.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from snapgen_deploy.export.mil.ops.registry import op

_RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


def _along(value: Tensor, rank: int, axis: int | None) -> Tensor:
    """A scalar, or one value per cell of `axis` shaped to broadcast."""
    if value.dim() == 0 or axis is None:
        return value.float()
    shape = [1] * rank
    shape[axis] = -1
    return value.float().reshape(shape)


@op("quantize")
def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """clip(round(input / scale) + zero point) to the output type's range; halves round to even."""
    low, high = _RANGES[output_dtype]
    y = torch.round(input / _along(scale, input.dim(), axis))
    if zero_point is not None:
        y = y + _along(zero_point, input.dim(), axis)
    return y.clamp(low, high)


@op("dequantize")
def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """scale * (input - zero point)."""
    y = input.float()
    if zero_point is not None:
        y = y - _along(zero_point, input.dim(), axis)
    return y * _along(scale, input.dim(), axis)
