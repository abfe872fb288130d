"""SnapGen's U-Net as a family."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from snapgen_deploy.families.base import DenseFamily, Folding, Layer, SizeRule
from snapgen_deploy.families.component import (
    VELOCITY,
    Components,
    ComponentSpec,
    Initial,
    Shape,
    Spelling,
    initial,
    initial_overlap_free,
)
from snapgen_deploy.families.decoder import decoder
from snapgen_deploy.families.names import STUDENT
from snapgen_deploy.families.ports import stepped, student_ports
from snapgen_deploy.families.text import text_encoders
from snapgen_deploy.families.unet_variants import unet_variants
from snapgen_deploy.models.config import ModelConfig, TextStream
from snapgen_deploy.models.schedule import Schedule, sigmas
from snapgen_deploy.models.unet import UNet
from snapgen_deploy.models.unet_config import UNetConfig, unet_of
from snapgen_deploy.sparse import Layout, OpForm, rewrite_unet


class UNetFamily(DenseFamily):
    """Separable convolutions, and transformer blocks at the lower levels; not elastic."""

    name = "unet"
    student_type = UNetConfig

    def components(self, config: ModelConfig) -> Components:
        """The components of a configuration."""
        return Components(text_encoders(config), _student(unet_of(config)), decoder(config))

    def schedule(self, config: ModelConfig) -> Schedule:
        """Of the configuration's steps, by default four; the paper has four and eight."""
        return Schedule(sigmas(config.steps, config.shift), config.shift, config.student.time_features)

    def size_rule(self, config: ModelConfig) -> SizeRule:
        """Every level but the lowest halves the latent."""
        unet = unet_of(config)
        constraints = f"latent factor {unet.latent_factor} and {len(unet.channels)} levels"
        return SizeRule(unet.latent_factor * unet.step, constraints, 2)

    def size_problems(self, config: ModelConfig, latent: tuple[int, int]) -> list[str]:
        """Why a latent does not fit."""
        return unet_of(config).latent_problems(*latent)

    def facts(self, config: ModelConfig, width: str) -> dict[str, int]:
        """Channels of the lowest level, and its query heads."""
        unet = unet_of(config)
        return {"hidden": unet.channels[-1], "heads": unet.channels[-1] // unet.head_dim, "kv_heads": 1}

    def folding(self, config: ModelConfig, latent: tuple[int, int], layout: Layout, form: str) -> Folding:
        """All query heads share one key/value head: in the token layout they are rows of one matrix of scores."""
        unet = unet_of(config)
        heads = [c // unet.head_dim for c, depth in zip(unet.channels, unet.blocks, strict=True) if depth]
        return Folding(max(heads, default=1) if layout == "token" else 1, frozenset())

    def examples(self, ops: OpForm) -> Sequence[Layer]:
        """U-Nets that run in a few milliseconds."""
        return example_unets(ops)


def _student(config: UNetConfig) -> ComponentSpec:
    """The student of a configuration."""
    return ComponentSpec(
        name=STUDENT,
        part="denoise",
        output=VELOCITY,
        build=lambda width: UNet(config),
        ports=partial(student_ports, config),
        apply=partial(stepped, config.text_streams),
        rewrite=_rewrite,
        folder="unet",
        hyperparameters=lambda width: config.written(),
        activations=partial(_activations, config),
        initial=_initial,
        variants=unet_variants,
        layers=_layers(config),
        elastic=True,
        takes_recipe=True,
        must_pack=True,
    )


def _layers(config: UNetConfig) -> int:
    """Residual and transformer blocks."""
    down = config.residuals * sum(1 + depth for depth in config.blocks)
    up = (config.residuals + 1) * sum(1 + depth for depth in config.blocks)
    return down + up + 2 + config.blocks[-1]


def _rewrite(network: nn.Module, latent: tuple[int, int], how: Spelling) -> nn.Module:
    assert isinstance(network, UNet)
    return rewrite_unet(network, latent, layout=how.layout, batch=how.batch, ops=how.ops)


def _initial(name: str, shape: Shape) -> Initial:
    return initial_overlap_free(shape) if name.endswith("upsample.weight") else initial(name, shape)


def _activations(config: UNetConfig, width: str, latent: tuple[int, int, int], size: tuple[int, int]) -> int:
    """Bytes of the skips of all levels and of the largest level's maps or scores, 4 bytes an element.

    With N cells and C channels of a level, a residual block on the way up holds its input (2 C N) and its inner map before and
    after a convolution (e C N each, e the expansion); a transformer block 2 C N and the larger of its FFN's inner map (r C N,
    twice where it is gated) and its scores (h N M, M the text's tokens, or N where there is self-attention).
    """
    text, largest, skips = sum(s.length for s in config.text_streams), 0, 0
    for level, (channels, depth) in enumerate(zip(config.channels, config.blocks, strict=True)):
        cells = (latent[1] >> level) * (latent[2] >> level)
        skips += (config.residuals + 1) * channels * cells
        maps = (2 + 2 * config.expansion) * channels * cells
        if depth:
            keys = max(text, cells if config.has_self_attention(level) else 0)
            inner = channels * cells * config.ffn_ratio * (2 if config.ffn_gated else 1)
            maps = max(maps, 2 * channels * cells + max(inner, channels // config.head_dim * cells * keys))
        largest = max(largest, maps)
    return 4 * (largest + skips)


def example_unets(ops: OpForm) -> list[Layer]:
    """Complete students in the token layout that run in a few milliseconds."""
    found = []
    for channels, blocks, side in (((32, 96), (0, 2), 24), ((48, 96, 160), (0, 1, 2), 32), ((64, 192), (0, 3), 16)):
        config = UNetConfig(
            latent_channels=4, channels=channels, blocks=blocks, residuals=1, groups=16, head_dim=32,
            text_streams=(TextStream("text", 96, 24),), text_width=96, time_width=128,
        )  # fmt: skip
        student = rewrite_unet(UNet(config).requires_grad_(False), (side, side), layout="token", ops=ops)
        shapes = ((1, 4, side, side), (1, config.time_features), (1, 24, 96), (1, 24))
        found.append(Layer(f"unet {side} {channels} {blocks}", student, shapes))
    return found
