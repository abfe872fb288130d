"""Decoders of autoencoders that are classes of diffusers, as components."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from snapgen_deploy.families.component import (
    LATENT,
    PICTURE,
    ComponentSpec,
    Initial,
    Oracle,
    OracleTask,
    Shape,
    Spelling,
    decoded,
    decoder_ports,
    initial,
)
from snapgen_deploy.families.decoder_variants import LatentFixes, latent_variants, pixel_variants
from snapgen_deploy.families.library_decoder_variants import module_variants
from snapgen_deploy.families.names import DECODER
from snapgen_deploy.families.variant import Variant
from snapgen_deploy.models.autoencoders import Facts, facts_of, latent_statistics
from snapgen_deploy.models.config import LibraryDecoder
from snapgen_deploy.models.library_decoder import DiffusersDecoder, library_decode, load_autoencoder
from snapgen_deploy.sparse import rewrite_library_decoder
from snapgen_deploy.sparse.image_layers import MOST_SCORES

LIBRARY = "diffusers"
_SMALL = 512 * 512  # pixels of a picture up to which the library decodes two latents
_MAPS = 3  # of the largest level alive at once: a block's input, the inside of its norm, and the result
_KEYS = "its config.json: scaling_factor and shift_factor, or latents_mean and latents_std:"
_FIXES = LatentFixes(
    f"{_KEYS} 1 and 0",
    f"{_KEYS} invert",
    f"{_KEYS} mean * std instead of mean",
    f"{_KEYS} 1 / std instead of std",
    lambda scale, shift: f"its config.json: scaling_factor {scale:g}, shift_factor {shift:g}",
)


def library_decoder(config: LibraryDecoder) -> ComponentSpec:
    """The component of a decoder of diffusers.

    Raises:
        BadInput: if its class is not one of those that can be exported, or its configuration lacks what is needed.
    """
    facts = facts_of(config)
    mean, std = latent_statistics(config)
    return ComponentSpec(
        name=DECODER,
        part="decode",
        output=PICTURE,
        build=lambda width: DiffusersDecoder(config),
        layers=facts.blocks,
        ports=decoder_ports,
        apply=decoded,
        rewrite=_rewrite,
        folder="vae_decoder",
        # the latent that the file takes is normalised already
        hyperparameters=lambda width: {**config.config, "scaling_factor": 1.0, "shift_factor": 0.0},
        activations=partial(_activations, facts),
        initial=_initial,
        variants=_variants,
        oracle=Oracle(LIBRARY, partial(_recorded, config)),
        latent_mean=mean,
        latent_std=std,
    )


def _recorded(config: LibraryDecoder, task: OracleTask) -> dict[str, Tensor]:
    """Latents of white and, for small pictures, smooth noise, and what the library decodes of them in fp32."""
    shape, pixels = task.drawing.latent, task.drawing.resolution[0] * task.drawing.resolution[1]
    generator = torch.Generator().manual_seed(0)
    white, coarse = torch.randn(1, *shape, generator=generator), torch.randn(1, shape[0], 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear")
    latents = torch.cat([white, smooth]) if pixels <= _SMALL else white
    whole = load_autoencoder(config, task.folder, task.read, task.adapted)
    pictures = [library_decode(whole, config, latents[i : i + 1]) for i in range(len(latents))]
    return {LATENT: latents, PICTURE: torch.cat(pictures)}


def _rewrite(network: nn.Module, latent: tuple[int, int], how: Spelling) -> nn.Module:
    assert isinstance(network, DiffusersDecoder)
    return rewrite_library_decoder(network, latent, layout=how.layout, upsample=how.upsample, ops=how.ops)


def _initial(name: str, shape: Shape) -> Initial:
    """Weights of norms are called gamma in some classes, and have the shape of a map."""
    return Initial(0.0, 1.0) if name.endswith("gamma") else initial(name, shape)


def _variants(network: nn.Module) -> list[Variant]:
    assert isinstance(network, DiffusersDecoder)
    return [*latent_variants(network.mean, network.std, _FIXES), *pixel_variants(), *module_variants(network.decoder)]


def _activations(facts: Facts, width: str, latent: tuple[int, int, int], size: tuple[int, int]) -> int:
    """Bytes of three maps of the largest level and of a part of the attention's scores, 4 bytes an element."""
    levels = len(facts.channels)
    pixels = [size[0] * size[1] >> 2 * i for i in range(levels)]  # from the last level, at full resolution
    maps = [c * p for c, p in zip(reversed(facts.channels), pixels, strict=True)]
    # the map behind an upsampling has the channels of the level before it
    maps += [c * p for c, p in zip(reversed(facts.channels[:-1]), pixels, strict=False)]
    scores = min(MOST_SCORES, (latent[1] * latent[2]) ** 2) if facts.attends else 0
    return 4 * max(_MAPS * max(maps), 2 * scores)
