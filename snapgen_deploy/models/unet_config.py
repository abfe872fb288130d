"""Configuration of SnapGen's U-Net. Every published hyperparameter of arXiv 2412.09619 is a field.

Values that the paper does not give are our choice and marked "not published".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

from pydantic import Field, StrictBool

from snapgen_deploy.models.config import (
    LARGEST_DEPTH,
    LARGEST_INT,
    MOST_LEVELS,
    MOST_STREAMS,
    Depth,
    Document,
    ModelConfig,
    Positive,
    PositiveInt,
    TextStream,
)

ONLY_WIDTH = "full"  # the network is not elastic
BlockCount = Annotated[int, Field(strict=True, ge=0, le=LARGEST_DEPTH)]


@dataclass(frozen=True)
class UNetConfig(Document):
    """Hyperparameters of the U-Net of separable convolutions, whose lower levels have transformer blocks."""

    latent_channels: PositiveInt = 16
    latent_factor: PositiveInt = 8
    # Per level, from the latent's resolution down; each level halves both sides.
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=MOST_LEVELS)] = (256, 512, 896)
    blocks: tuple[BlockCount, ...] = (0, 2, 4)  # transformer blocks after each residual block
    residuals: Depth = 2  # residual blocks per level going down, one more going up; SDXL's
    expansion: PositiveInt = 2  # of the channels between the two separable convolutions of a residual block
    groups: PositiveInt = 32  # of GroupNorm; not published, SDXL's
    head_dim: PositiveInt = 64  # not published, SDXL's
    ffn_ratio: PositiveInt = 3
    ffn_gated: StrictBool = True  # not published, SDXL's; gives the published parameter count
    text_streams: Annotated[tuple[TextStream, ...], Field(min_length=1)] = (
        TextStream("clip_l", 768, 77),
        TextStream("clip_g", 1280, 77),
        TextStream("llm", 2304, 128),
    )
    text_width: PositiveInt = 1280  # common width that every stream is projected to; not published
    time_features: PositiveInt = 256  # sinusoidal features of sigma; not published
    time_width: PositiveInt = 1024  # of the noise level's embedding; not published
    rope_theta: Positive = 10000.0  # not published

    @property
    def widths(self) -> Mapping[str, float]:
        """The only one."""
        return MappingProxyType({ONLY_WIDTH: 1.0})

    @property
    def step(self) -> int:
        """Both sides of a latent are multiples of it, so that every level halves them."""
        return int(2 ** (len(self.channels) - 1))

    def has_self_attention(self, level: int) -> bool:
        """Only the lowest resolution has it."""
        return level == len(self.channels) - 1

    def problems(self) -> list[str]:
        """Why this configuration is invalid, one line each; empty if it is valid."""
        if len(self.text_streams) > MOST_STREAMS:
            return [f"text_streams: got {len(self.text_streams)} of them, expected at most {MOST_STREAMS}"]
        if len(self.blocks) != len(self.channels):
            return [f"{len(self.channels)} channels and {len(self.blocks)} blocks; expected one of each per level"]
        found = [
            f"text_streams: {s.name} has a pooled vector, which a U-Net does not take" for s in self.text_streams if s.pooled
        ]
        if sum(self.blocks) * self.residuals > LARGEST_DEPTH:
            found.append(f"blocks: got {sum(self.blocks)} x residuals {self.residuals}, expected at most {LARGEST_DEPTH}")
        for level, (channels, blocks) in enumerate(zip(self.channels, self.blocks, strict=True)):
            if channels % self.groups:
                found.append(f"channels[{level}]: {channels} must be a multiple of groups {self.groups}")
            if blocks and channels % self.head_dim:
                found.append(f"channels[{level}]: {channels} must be a multiple of head_dim {self.head_dim}")
            if channels * self.expansion > LARGEST_INT:
                found.append(f"channels[{level}]: {channels} x expansion {self.expansion}, expected at most {LARGEST_INT}")
        if self.head_dim % 4:
            found.append(f"head_dim {self.head_dim} must be a multiple of 4 (two axes of rotary pairs)")
        if self.time_features < 2 or self.time_features % 2:
            found.append(f"time_features {self.time_features} must be a positive even number (pairs of sine and cosine)")
        return found

    def latent_problems(self, height: int, width: int) -> list[str]:
        """Why a latent of `height` x `width` does not fit the levels."""
        step = self.step
        if min(height, width) < step or height % step or width % step:
            levels = f"{len(self.channels)} levels"
            return [f"latent {height}x{width}: both sides must be positive multiples of {step} ({levels})"]
        return []


def unet_of(config: ModelConfig) -> UNetConfig:
    """The student of a configuration of the U-Net family."""
    assert isinstance(config.student, UNetConfig)  # the registry gave its reader this class
    return config.student
