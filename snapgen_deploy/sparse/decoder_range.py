"""Brings the maps before the decoder's norms into a range whose squares half precision can hold, at no cost on the phone.

The layers before such a norm are linear, and GroupNorm of s x with s^2 eps is GroupNorm of x: a power of two in the weights
changes no digit of them and takes no operation.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.models.decoder import TinyDecoder

_LARGE = 64.0  # squares overflow half precision from 256 on: room for pictures unlike the latents tried
WANTED = 16.0
_SIDE = 16  # of the latents tried

Scales = Mapping[nn.GroupNorm, Tensor]


def norm_scales(decoder: TinyDecoder) -> Scales:
    """Powers of two (C,) per norm: what its input's channels are to be multiplied by, the same in each group.

    Only norms are in it that have a group whose centred values exceed 64 for latents of seeded noise, white and smooth
    (latents are normalised per channel, so that this is their size); other groups of theirs get 1.
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
            decoder(_latents(decoder.config.latent_channels))
    finally:
        for hook in hooks:
            hook.remove()
    return scales


def scaled(expand: nn.Conv2d, depthwise: nn.Conv2d, scale: Tensor) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Copies of the two layers whose result is `scale` (C,) times theirs; each has half of it, so that no weight vanishes."""
    first = torch.exp2(torch.floor(torch.log2(scale) / 2))
    return _times(expand, first, first), _times(depthwise, scale / first, scale)


def _times(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    made = copy.deepcopy(layer)
    with torch.no_grad():
        made.weight *= weight[:, None, None, None]
        if made.bias is not None:
            made.bias *= bias
    return made


def _latents(channels: int) -> Tensor:
    """Standard normal latents (4, C, 16, 16): two white, two smooth over a quarter of a side."""
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(2, channels, _SIDE, _SIDE, generator=generator)
    coarse = torch.randn(2, channels, 4, 4, generator=generator)
    return torch.cat([white, F.interpolate(coarse, size=(_SIDE, _SIDE), mode="bilinear")])
