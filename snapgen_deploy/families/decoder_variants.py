"""What decoders in the wild do otherwise than `models.decoder`, with the same tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.families.variant import Change, Variant, activations, divisors, given, having, modules_of, returning
from snapgen_deploy.models.decoder import Level, ResidualBlock, TinyDecoder

# Scale and shift of published autoencoders: a decoder reads latent / scale + shift.
PUBLISHED_LATENTS = {
    "Stable Diffusion": (0.18215, 0.0), "SDXL": (0.13025, 0.0), "SD 3": (1.5305, 0.0609), "Flux": (0.3611, 0.1159),
    "SANA": (0.41407, 0.0),
}  # fmt: skip
MEAN_STD = "decoder.latent_mean and decoder.latent_std"


@dataclass(frozen=True)
class LatentFixes:
    """How a configuration says that the latent is normalised otherwise."""

    none: str  # not at all
    inverted: str  # (latent - mean) / std
    product: str  # (latent + mean) * std
    reciprocal: str  # latent / std + mean
    published: Callable[[float, float], str]  # latent / scale + shift, of the scale and the shift


OWN_FIXES = LatentFixes(
    f"{MEAN_STD}: leave both empty",
    f"{MEAN_STD}: invert",
    f"{MEAN_STD}: give mean * std",
    f"{MEAN_STD}: give 1 / std",
    lambda scale, shift: f"{MEAN_STD}: {shift:g} and {1 / scale:.6g} in every channel",
)


def decoder_variants(network: nn.Module) -> Sequence[Variant]:
    """Those that fit the tensors of a decoder."""
    assert isinstance(network, TinyDecoder)
    widths = math.gcd(*(block.norm.num_channels for block in modules_of(network, ResidualBlock)))
    groups = network.config.groups
    return [
        *pixel_variants(
            Variant(
                "pixel range",
                "pixels of -1 ... 1 in the file, while the decoder itself gives [0, 1]",
                "no conversion",
                _pixels(2.0, -1.0),
                "double the weights of decoder.last, and make its bias 2 b - 1",
            )
        ),
        *latent_variants(network.mean, network.std, OWN_FIXES),
        *activations("activation", ResidualBlock, "SiLU"),
        *(
            Variant("groups", f"{n} groups", f"{groups} groups", _groups(n), f"set decoder.groups to {n}")
            for n in divisors(widths)
            if n != groups
        ),
        Variant("upsampling", "bilinear", "nearest", _bilinear),
        Variant("eps", "GroupNorm eps 1e-06", "1e-05", lambda n: having(modules_of(n, nn.GroupNorm), lambda m: {"eps": 1e-6})),
    ]


def pixel_variants(*more: Variant) -> list[Variant]:
    """Other ranges and orders of a picture's values, and `more` of them."""
    return [
        Variant("pixel range", "pixels in [0, 1] in the file", "-1 ... 1", _pixels(0.5, 0.5), "write them as 2 x - 1"),
        *more,
        Variant("pixel range", "pixels of 0 ... 255 in the file", "-1 ... 1", _pixels(127.5, 127.5), "write x / 127.5 - 1"),
        Variant("channels", "blue, green, red", "red, green, blue", lambda n: returning([n], lambda p: p.flip(1))),
    ]


def latent_variants(mean: Tensor, std: Tensor, fixes: LatentFixes) -> list[Variant]:
    """Other scales and shifts of the latent; the network computes latent * std + mean with its attributes of these names."""
    kind = "scale and shift of latents"
    ours = "latent * std + mean of the configuration"
    found = [Variant(kind, "tanh(latent / 3) * 3 (TAESD)", "no clamp", _soft_clamp)]
    if bool((mean != 0).any() or (std != 1).any()):
        zero, one = torch.zeros_like(mean), torch.ones_like(std)
        found += [
            Variant(kind, "latents as they are", ours, _normalised(zero, one), fixes.none),
            Variant(kind, "(latent - mean) / std", ours, _normalised(-mean / std, 1 / std), fixes.inverted),
            Variant(kind, "(latent + mean) * std", ours, _normalised(mean * std, std), fixes.product),
            Variant(kind, "latent / std + mean", ours, _normalised(mean, 1 / std), fixes.reciprocal),
        ]
    for name, (scale, shift) in PUBLISHED_LATENTS.items():
        added = f" + {shift}" if shift else ""
        other = _normalised(torch.full_like(mean, shift), torch.full_like(std, 1 / scale))
        found.append(Variant(kind, f"latent / {scale}{added} ({name})", ours, other, fixes.published(scale, shift)))
    return found


def _soft_clamp(network: nn.Module) -> AbstractContextManager[None]:
    return given([network], lambda args: ((args[0] / 3).tanh() * 3,))


def _normalised(mean: Tensor, std: Tensor) -> Change:
    return lambda network: having([network], lambda n: {"mean": mean, "std": std})


def _pixels(factor: float, added: float) -> Change:
    return lambda network: returning([network], lambda picture: picture * factor + added)


def _groups(count: int) -> Change:
    return lambda network: having(modules_of(network, nn.GroupNorm), lambda norm: {"num_groups": count})


def _bilinear(network: nn.Module) -> AbstractContextManager[None]:
    def smooth(level: Level) -> dict[str, Any]:
        def forward(x: Tensor) -> Tensor:
            for block in level.blocks:
                x = block(x)
            return x if level.up is None else level.up(F.interpolate(x, scale_factor=2.0, mode="bilinear"))

        return {"forward": forward}

    return having(modules_of(network, Level), smooth)
