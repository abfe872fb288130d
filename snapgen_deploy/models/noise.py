"""The generators of the noise that a picture begins with, from a seed (docs/noise.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from snapgen_deploy.models.schedule import initial_noise
from snapgen_deploy.runtime.noise import PHILOX as PHILOX
from snapgen_deploy.runtime.noise import philox4x32 as philox4x32
from snapgen_deploy.runtime.noise import philox_noise as philox_noise

TORCH = "torch"
DEFAULT_NOISE = PHILOX  # which an app of any language can make
NOISE_DOC = "docs/noise.md of snapgen-deploy"


def _torch_noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    made: np.ndarray = initial_noise(seed, shape).numpy()
    return made


# `torch` is that of training and calibration here, and of bundles that name no generator.
GENERATORS: Mapping[str, Callable[[int, tuple[int, ...]], np.ndarray]] = {PHILOX: philox_noise, TORCH: _torch_noise}


def drawn_noise(name: str, seed: int, draws: int, shape: tuple[int, ...]) -> np.ndarray:
    """Noise that a seed gives one after the other: (draws, *shape).

    Philox's numbers are one row, of which each draw takes the next; torch is asked for each draw, as a pipeline of diffusers
    asks a generator.
    """
    if name != TORCH:
        return GENERATORS[name](seed, (draws, *shape))
    generator = torch.Generator().manual_seed(seed)
    return np.stack([torch.randn(shape, generator=generator).numpy() for _ in range(draws)])
