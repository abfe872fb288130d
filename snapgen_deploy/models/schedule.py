"""The flow-matching schedule and the Euler sampler: x_sigma = (1 - sigma) x0 + sigma noise, v = noise - x0."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """Noise levels of the sampler, ending in 0, and the number of time features that the student takes."""

    sigmas: tuple[float, ...]
    shift: float
    time_features: int
    sampler: str = "euler"

    def features(self, step: int) -> np.ndarray:
        """The student's `time_features` input (1, F) at a step."""
        return time_features(torch.tensor([self.sigmas[step]]), self.time_features).numpy()


def sigmas(steps: int, shift: float) -> tuple[float, ...]:
    """Noise levels of `steps` Euler steps, ending in 0: s -> shift*s / (1 + (shift - 1)*s) of 1, 1-1/steps, ...

    >>> sigmas(4, 3.0)  # the published schedule
    (1.0, 0.9, 0.75, 0.5, 0.0)
    """
    levels = [1 - i / steps for i in range(steps)]
    return (*(shift * s / (1 + (shift - 1) * s) for s in levels), 0.0)


def time_features(sigma: Tensor, count: int) -> Tensor:
    """Sinusoidal features of the noise level; sigma (B,) in [0, 1] -> (B, count), cosines first.

    The usual 1000 * sigma with a base of 10000 (PixArt-alpha). In fp16 the angle would lose all its precision,
    therefore exported students take these features as an input instead of sigma.
    """
    half = count // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=sigma.device) / half)
    angles = 1000.0 * sigma.float()[:, None] * frequencies  # (B, count/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)  # (B, count)


def euler(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, levels: tuple[float, ...]) -> Tensor:
    """x <- x + (next - sigma) * v(x, sigma) from noise (B, C, h, w) down the levels; one call of `velocity` per step."""
    return euler_by_step(lambda x, step: velocity(x, levels[step]), noise, levels)


def euler_by_step(velocity: Callable[[Tensor, int], Tensor], noise: Tensor, levels: tuple[float, ...]) -> Tensor:
    """As `euler`, with the number of the step (0, 1, ...) in place of its sigma."""
    x = noise
    for step, (sigma, following) in enumerate(itertools.pairwise(levels)):
        x = x + (following - sigma) * velocity(x, step)
    return x


def initial_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise that is the same on every machine: torch's CPU generator, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
