"""How large the inputs of a library decoder's norms are, so that their squares can be scaled into half precision."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from snapgen_deploy.models.library_decoder import DiffusersDecoder
from snapgen_deploy.sparse.decoder_range import WANTED, probe_latents

_LARGE, _SMALL = 64.0, 1.0  # squares overflow from 256 on; below 1, an eps that half precision can hold would count
_PIXELS = 128  # of a side of the probes' pictures
NORMS = frozenset({"GroupNorm", "RMSNorm", "WanRMS_norm", "QwenImageRMS_norm"})

InputScales = Mapping[nn.Module, Tensor]


def input_scales(decoder: DiffusersDecoder) -> InputScales:
    """Powers of two for the input of each norm that needs one: (C,) for a GroupNorm, (1,) for an RMS norm.

    From the largest values for latents of seeded noise. Empty for a network without values.
    """
    scales: dict[nn.Module, Tensor] = {}
    if any(p.is_meta for p in decoder.parameters()):
        return scales

    def watch(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        if isinstance(norm, nn.GroupNorm):
            grouped = x.reshape(x.shape[0], norm.num_groups, -1)  # (B, G, C/G*H*W)
            largest = (grouped - grouped.mean(2, keepdim=True)).abs().amax((0, 2))  # (G,)
            repeats = norm.num_channels // norm.num_groups
        else:
            largest, repeats = x.abs().amax().reshape(1), 1
        outside = ((largest > _LARGE) | (largest < _SMALL)) & largest.isfinite() & (largest > 0)
        if bool(outside.any()):
            wanted = torch.exp2(-torch.ceil(torch.log2(largest / WANTED)))
            scales[norm] = torch.where(outside, wanted, torch.ones_like(largest)).repeat_interleave(repeats)

    with ExitStack() as hooks, torch.no_grad():
        for module in decoder.modules():
            if type(module).__name__ in NORMS:
                hooks.callback(module.register_forward_pre_hook(watch).remove)
        side = max(4, _PIXELS // decoder.facts.factor)
        decoder(probe_latents(decoder.facts.latent, side))
    return scales
