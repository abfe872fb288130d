"""Activations (coremltools: iOS15/activation.py)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_deploy.export.mil.ops.registry import elementwise, op

elementwise(
    {
        "relu": F.relu,
        "relu6": F.relu6,
        "sigmoid": torch.sigmoid,
        "silu": F.silu,
        "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),  # F.softplus is the identity beyond 20
        "softsign": F.softsign,
    }
)


@op("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """x * Phi(x), exactly or by the tanh or sigmoid approximation."""
    if mode == "EXACT":
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"mode {mode!r} is unknown")


@op("clamped_relu")
def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(x, beta) above 0, min(alpha * x, beta) below."""
    return torch.where(x >= 0, x, alpha * x).clamp(max=beta)


@op("elu")
def elu(x: Tensor, alpha: float) -> Tensor:
    """x above 0, alpha * (e^x - 1) below."""
    return torch.where(x > 0, x, alpha * torch.expm1(x))


@op("leaky_relu")
def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    """x above 0, alpha * x below."""
    return F.leaky_relu(x, alpha)


@op("linear_activation")
def linear_activation(x: Tensor, alpha: float, beta: float = 0.0) -> Tensor:
    """alpha * x + beta."""
    return alpha * x + beta


@op("prelu")
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """x above 0, alpha_c * x below, c the second axis."""
    return torch.where(x > 0, x, _per_channel(alpha, x) * x)


@op("scaled_tanh")
def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha * tanh(beta * x)."""
    return alpha * torch.tanh(beta * x)


@op("sigmoid_hard")
def sigmoid_hard(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """alpha * x + beta, kept within 0 and 1."""
    return (alpha * x + beta).clamp(0, 1)


@op("softplus_parametric")
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """alpha_c * log(1 + e^(beta_c * x)), c the second axis."""
    y = _per_channel(beta, x) * x
    return _per_channel(alpha, x) * torch.logaddexp(y, torch.zeros_like(y))


@op("thresholded_relu")
def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """x where x >= alpha, else 0."""
    return torch.where(x >= alpha, x, torch.zeros_like(x))


@op("softmax")
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """e^x / sum(e^x) along `axis`."""
    return x.softmax(axis)


def _per_channel(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(-1, *(1,) * (x.dim() - 2))
