"""Scales the inputs of the decoder's norms so that their squares fit half precision, at no cost on the phone.

The layers before such a norm are linear, and GroupNorm of s x with s^2 eps is GroupNorm of x: a power of two in the weights
changes none of their digits and needs no operation.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.models.decoder import TinyDecoder

_LARGE = 64.0  # squares overflow half precision from 256 on: the margin is for latents other than the probes
WANTED = 16.0
_SIDE = 16  # of the probe latents

Scales = Mapping[nn.GroupNorm, Tensor]


def norm_scales(decoder: TinyDecoder) -> Scales:
    """Powers of two (C,) per norm: the factors of its input's channels, equal within a group.

    Contains only norms with a group whose centred values exceed 64 for latents of seeded noise, white and smooth (latents are
    normalised per channel, so they have this magnitude); the other groups of such a norm get 1.
    """
    scales: dict[nn.GroupNorm, Tensor] = {}

    def watch(norm: nn.GroupNorm, inputs: tuple[Tensor]) -> None:
        (x,) = inputs
        grouped = x.reshape(x.shape[0], norm.num_groups, -1)  # (B, G, C/G*H*W)
        largest = (grouped - grouped.mean(2, keepdim=True)).abs().amax((0, 2))  # (G,)
        too_large = (largest > _LARGE) & largest.isfinite()
        if bool(too_large.any()):
            smaller = torch.exp2(-torch.ceil(torch.log2(largest / WANTED)))
            of_groups = torch.where(too_large, smaller, torch.ones_like(largest))  # (G,)
            scales[norm] = of_groups.repeat_interleave(norm.num_channels // norm.num_groups)

    hooks = [m.register_forward_pre_hook(watch) for m in decoder.modules() if isinstance(m, nn.GroupNorm)]
    try:
        with torch.no_grad():
            decoder(probe_latents(decoder.config.latent_channels, _SIDE))
    finally:
        for hook in hooks:
            hook.remove()
    return scales


def scaled(expand: nn.Conv2d, depthwise: nn.Conv2d, scale: Tensor) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Copies of the two layers whose result is `scale` (C,) times as large; each takes its root, so that no weight vanishes."""
    first = torch.exp2(torch.floor(torch.log2(scale) / 2))
    return _times(expand, first, first), _times(depthwise, scale / first, scale)


def _times(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    made = copy.deepcopy(layer)
    with torch.no_grad():
        made.weight *= weight[:, None, None, None]
        if made.bias is not None:
            made.bias *= bias
    return made


def probe_latents(channels: int, side: int) -> Tensor:
    """Standard normal latents (4, C, side, side): two white, two smooth over a quarter of a side."""
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(2, channels, side, side, generator=generator)
    coarse = torch.randn(2, channels, 4, 4, generator=generator)
    return torch.cat([white, F.interpolate(coarse, size=(side, side), mode="bilinear")])
