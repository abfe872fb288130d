"""Normalisations (coremltools: iOS15/normalization.py)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_deploy.export.mil.ops.registry import op


@op("layer_norm")
def layer_norm(
    x: Tensor,
    axes: tuple[int, ...] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """gamma * (x - mean) / sqrt(var + epsilon) + beta over `axes` (all when not given); gamma and beta have their shape."""
    if not x.numel():  # nothing has no mean, which torch would warn of
        return x
    positive = list(range(x.dim())) if axes is None else sorted(a % x.dim() for a in axes)
    if positive and positive == list(range(x.dim() - len(positive), x.dim())):
        return F.layer_norm(x, [x.shape[a] for a in positive], gamma, beta, epsilon)
    whole = (torch.zeros_like(x), x)  # without axes each element is its own mean; to torch, no axes are all axes
    variance, mean = torch.var_mean(x, positive, correction=0, keepdim=True) if positive else whole
    y = (x - mean) * torch.rsqrt(variance + epsilon)
    shape = [x.shape[a] if a in positive else 1 for a in range(x.dim())]
    if gamma is not None:
        y = y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


@op("instance_norm")
def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """Normalises each channel of each sample over its spatial axes."""
    if not x.numel():
        return x
    axes = tuple(range(2, x.dim()))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return _affine((x - mean) * torch.rsqrt(variance + epsilon), gamma, beta)


@op("batch_norm")
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta per channel (second axis)."""
    return F.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


@op("l2_norm")
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """x / sqrt(sum(x^2) + epsilon) over the last three axes."""
    return x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


@op("local_response_norm")
def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """x / (k + alpha / size * sum of squares over `size` neighbouring channels)^beta."""
    return F.local_response_norm(x, size, alpha, beta, k)


def _affine(y: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    shape = (-1, *(1,) * (y.dim() - 2))
    if gamma is not None:
        y = y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)
