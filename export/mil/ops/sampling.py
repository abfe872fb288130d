"""Random numbers (coremltools: iOS15/random.py).

Core ML promises no particular numbers, only the distribution; a seed gives the same numbers here in every run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snapgen_deploy.export.mil.ops.registry import op


def _generator(seed: int) -> torch.Generator:
    generator = torch.Generator()
    if seed < 0:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


@op("random_normal")
def random_normal(shape: tuple[int, ...], mean: float = 0.0, stddev: float = 1.0, seed: int = -1) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=_generator(seed)) * stddev + mean


@op("random_uniform")
def random_uniform(shape: tuple[int, ...], low: float = 0.0, high: float = 1.0, seed: int = -1) -> Tensor:
    """Uniform numbers from low up to but without high."""
    return torch.rand(shape, generator=_generator(seed)) * (high - low) + low


@op("random_bernoulli")
def random_bernoulli(shape: tuple[int, ...], prob: float = 0.5, seed: int = -1) -> Tensor:
    """1 with probability `prob`, else 0."""
    return (torch.rand(shape, generator=_generator(seed)) < prob).float()


@op("random_categorical")
def random_categorical(x: Tensor, mode: str = "logits", size: int = 1, seed: int = -1) -> Tensor:
    """`size` class indices per row of x (n, classes), which holds log-odds or probabilities."""
    weights = x.softmax(-1) if mode == "logits" else x
    return torch.multinomial(weights, size, replacement=True, generator=_generator(seed)).float()
