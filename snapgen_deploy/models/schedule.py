"""The flow-matching schedule and the Euler sampler: x_sigma = (1 - sigma) x0 + sigma noise, v = noise - x0."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

EULER, LINEAR = "euler", "linear"  # samplers


class StepCoefficients(NamedTuple):
    """One step of the linear sampler: x <- keep * x + scale * output + noise * fresh noise."""

    keep: float
    scale: float
    noise: float


@dataclass(frozen=True)
class Schedule:
    """Noise levels of the sampler, ending in 0, and the number of time features that the student takes.

    The linear sampler has coefficients of its own for each step, and begins with `start` times the noise.
    """

    sigmas: tuple[float, ...]
    shift: float
    time_features: int
    sampler: str = EULER
    timesteps: tuple[float, ...] = ()  # what the features are of, one for each step; (): 1000 sigma
    coefficients: tuple[StepCoefficients, ...] = ()
    start: float = 1.0

    def features(self, step: int) -> np.ndarray:
        """The student's `time_features` input (1, F) at a step."""
        if self.timesteps:
            return timestep_features(torch.tensor([self.timesteps[step]]), self.time_features).numpy()
        return time_features(torch.tensor([self.sigmas[step]]), self.time_features).numpy()

    @property
    def fresh(self) -> int:
        """How often noise is drawn after the first."""
        return sum(step.noise != 0.0 for step in self.coefficients)

    def sampled(self, velocity: Callable[[Tensor, int], Tensor], noise: Tensor) -> Tensor:
        """The clean latents (n, C, h, w): `velocity` of a latent and the number of the step is called once for each step.

        `noise` is (n, C, h, w), or (n, 1 + fresh, C, h, w) where steps draw noise.
        """
        if self.sampler == EULER:
            return euler_by_step(velocity, noise, self.sigmas)
        drawn = iter(noise.unbind(1) if self.fresh else (noise,))
        x = next(drawn) * self.start
        for step, (keep, scale, added) in enumerate(self.coefficients):
            x = keep * x + scale * velocity(x, step)
            if added != 0.0:
                x = x + added * next(drawn)
        return x


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
    return timestep_features(1000.0 * sigma.float(), count)


def timestep_features(timestep: Tensor, count: int) -> Tensor:
    """The same of a timestep (B,), which is 1000 sigma in most networks -> (B, count)."""
    half = count // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half)
    angles = timestep.float()[:, None] * frequencies  # (B, count/2)
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
