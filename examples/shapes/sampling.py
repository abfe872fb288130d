"""Draws many pictures at once from embeddings: Euler steps, with classifier-free guidance if a scale is given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snapgen_deploy.models import euler, time_features

# latent (B, C, h, w), features (B, F), text (B, L, T), mask (B, L) -> velocity (B, C, h, w)
Network = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Velocity = Callable[[Tensor, float], Tensor]


def guided(
    network: Network, features: int, text: Tensor, mask: Tensor, empty: tuple[Tensor, Tensor] | None = None, scale: float = 1.0
) -> Velocity:
    """The velocity of a batch of prompts: v_empty + scale * (v - v_empty), or v without `empty`."""

    def velocity(x: Tensor, sigma: float) -> Tensor:
        level = time_features(torch.full((len(x),), sigma), features)
        if empty is None or scale == 1.0:
            return network(x, level, text, mask)
        plain_text, plain_mask = (e.expand_as(t) for e, t in zip(empty, (text, mask), strict=True))
        with_prompt = network(x, level, text, mask)
        without = network(x, level, plain_text, plain_mask)
        return without + scale * (with_prompt - without)

    return velocity


@torch.no_grad()
def draw(velocity: Velocity, noise: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Draw latents from noise."""
    return euler(velocity, noise, levels)
