"""The flow-matching schedule and the Euler sampler: x_sigma = (1 - sigma) x0 + sigma noise, v = noise - x0."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor


def sigmas(steps: int, shift: float) -> tuple[float, ...]:
    """Noise levels of `steps` Euler steps, ending in 0: s -> shift*s / (1 + (shift - 1)*s) of 1, 1-1/steps, ...

    Four steps at the published shift 3 give 1, 0.9, 0.75, 0.5, 0.
    """
    levels = [1 - i / steps for i in range(steps)]
    return (*(shift * s / (1 + (shift - 1) * s) for s in levels), 0.0)


def euler(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, levels: tuple[float, ...]) -> Tensor:
    """x <- x + (next - sigma) * v from noise (B, C, h, w) down the levels; one call of `velocity` per step."""
    x = noise
    for sigma, following in itertools.pairwise(levels):
        x = x + (following - sigma) * velocity(x, sigma)
    return x


def initial_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise that is the same on every machine: torch's CPU generator, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
