"""The tiny decoder as a component."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

from torch import nn

from snapgen_deploy.families.component import (
    PICTURE,
    ComponentSpec,
    Initial,
    Shape,
    Spelling,
    decoded,
    decoder_ports,
    initial,
    initial_overlap_free,
)
from snapgen_deploy.families.decoder_variants import decoder_variants
from snapgen_deploy.families.library_decoder import library_decoder
from snapgen_deploy.families.names import DECODER
from snapgen_deploy.models.config import DecoderConfig, LibraryDecoder, ModelConfig
from snapgen_deploy.models.decoder import TinyDecoder
from snapgen_deploy.sparse import norm_scales, rewrite_decoder


def decoder(config: ModelConfig) -> ComponentSpec | None:
    """The decoder of a configuration; None if it has none."""
    if isinstance(config.decoder, LibraryDecoder):
        return library_decoder(config.decoder)
    return None if config.decoder is None else _spec(config.decoder)


def _spec(config: DecoderConfig) -> ComponentSpec:
    return ComponentSpec(
        name=DECODER,
        part="decode",
        output=PICTURE,
        build=lambda width: TinyDecoder(config),
        layers=sum(config.blocks),
        ports=decoder_ports,
        apply=decoded,
        rewrite=_rewrite,
        folder="vae_decoder",
        hyperparameters=lambda width: {**asdict(config), "scaling_factor": 1.0, "shift_factor": 0.0},
        activations=partial(_activations, config),
        initial=_initial,
        variants=decoder_variants,
        latent_mean=config.latent_mean,
        latent_std=config.latent_std,
        has_constants=True,  # the latent's mean and deviation
    )


def _rewrite(network: nn.Module, latent: tuple[int, int], how: Spelling) -> nn.Module:
    assert isinstance(network, TinyDecoder)
    scales = {} if _is_skeleton(network) else norm_scales(network)
    return rewrite_decoder(network, latent, layout=how.layout, upsample=how.upsample, scales=scales)


def _initial(name: str, shape: Shape) -> Initial:
    return initial_overlap_free(shape) if name.endswith("upsample.weight") else initial(name, shape)


def _is_skeleton(network: nn.Module) -> bool:
    """Whether its tensors have no values: the latency estimator uses shapes only."""
    return any(p.is_meta for p in network.parameters())


def _activations(config: DecoderConfig, width: str, latent: tuple[int, int, int], size: tuple[int, int]) -> int:
    """Bytes of three maps of the largest block, widened, 4 bytes an element."""
    pixels = (size[0] * size[1] >> 2 * i for i in range(len(config.channels)))  # from the last level, at full resolution
    return 12 * config.expand * max(c * p for c, p in zip(reversed(config.channels), pixels, strict=True))
