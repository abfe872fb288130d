"""Configuration of the elastic diffusion transformer. Every published hyperparameter of SnapGen++ is a field.

Values that the paper (arXiv 2601.08303) does not give are our choice and marked "not published".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, StrictBool

from snapgen_deploy.models.config import (
    LARGEST_INT,
    MOST_STREAMS,
    MOST_WIDTHS,
    Depth,
    Document,
    ModelConfig,
    Name,
    Positive,
    PositiveInt,
    TextStream,
)

Ratio = Annotated[Positive, Field(le=LARGEST_INT)]  # of a width to the whole network
StageKind = Literal["assa", "full"]
STAGES: tuple[str, str, str] = ("down", "middle", "up")


@dataclass(frozen=True)
class DiTConfig(Document):
    """Hyperparameters of the elastic three-stage diffusion transformer."""

    latent_channels: PositiveInt = 16
    latent_factor: PositiveInt = 8
    patch: PositiveInt = 2
    hidden: PositiveInt = 2048  # at width 1.0; not published, fits the published parameter counts
    head_dim: PositiveInt = 64  # not published
    kv_group: PositiveInt = 2  # query heads per key/value head; gives the published 8 KV heads at 0.5x
    depths: tuple[Depth, Depth, Depth] = (8, 10, 10)  # blocks in Down, Middle, Up
    attention: tuple[StageKind, StageKind, StageKind] = ("assa", "full", "assa")
    ffn_ratios: tuple[PositiveInt, PositiveInt, PositiveInt] = (4, 3, 4)
    blocks: PositiveInt = 16  # B: blocks of the token sequence in the local branch
    radius: Annotated[int, Field(strict=True, ge=0, le=LARGEST_INT)] = 1  # r: block b attends to blocks b-r ... b+r
    text_streams: Annotated[tuple[TextStream, ...], Field(min_length=1)] = (
        TextStream("text", 512, 77),
        TextStream("llm", 2560, 128),
    )
    text_width: PositiveInt = 768  # common width that every stream is projected to
    cross_dim: PositiveInt = 1024  # inner width of cross-attention, the same at every network width
    time_features: PositiveInt = 256  # sinusoidal features of sigma, PixArt-alpha
    rope_theta: Positive = 10000.0
    absolute_positions: StrictBool = True  # PixArt-alpha's fixed sine-cosine table; RoPE alone cannot tell top from bottom
    widths: Annotated[dict[Name, Annotated[Positive, Field(le=LARGEST_INT)]], Field(min_length=1)] = field(
        default_factory=lambda: {"tiny": 0.375, "small": 0.5, "full": 1.0}
    )

    @property
    def pooled(self) -> int:
        """Channels of the pooled vectors of all text streams together; 0: it takes none."""
        return sum(s.pooled for s in self.text_streams)

    def hidden_at(self, width: str) -> int:
        """Hidden width of the sub-network `width`."""
        return round(self.hidden * self.widths[width])

    def heads_at(self, width: str) -> int:
        """Query heads of the sub-network `width`."""
        return self.hidden_at(width) // self.head_dim

    def kv_heads_at(self, width: str) -> int:
        """Key/value heads of the sub-network `width`."""
        return self.heads_at(width) // self.kv_group

    def problems(self) -> list[str]:
        """Why this configuration is invalid, one line each; empty if it is valid."""
        most = {"widths": (len(self.widths), MOST_WIDTHS), "text_streams": (len(self.text_streams), MOST_STREAMS)}
        if many := [
            f"{name}: got {count} of them, expected at most {limit}" for name, (count, limit) in most.items() if count > limit
        ]:
            return many
        found = []
        for name, ratio in self.widths.items():
            hidden = self.hidden * ratio
            unit = self.head_dim * self.kv_group
            if not math.isclose(hidden, round(hidden), rel_tol=1e-6) or round(hidden) % unit or hidden < 0.5:
                said = f"hidden {self.hidden} x {ratio:g} = {hidden:g}"
                found.append(f"width {name}: {said} must be a multiple of head_dim*kv_group = {unit}")
        if self.head_dim % 4:
            found.append(f"head_dim {self.head_dim} must be a multiple of 4 (two axes of rotary pairs)")
        if self.cross_dim % self.head_dim:
            found.append(f"cross_dim {self.cross_dim} must be a multiple of head_dim {self.head_dim}")
        if self.time_features < 2 or self.time_features % 2:
            found.append(f"time_features {self.time_features} must be a positive even number (pairs of sine and cosine)")
        if self.absolute_positions and (wide := [n for n, ratio in self.widths.items() if ratio > 1]):
            found.append(f"width {wide[0]}: ratios above 1 have no absolute positions, which are of the hidden size at 1.0")
        return found

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token grid (H, W) of Down and Up for a latent of `height` x `width`."""
        return height // self.patch, width // self.patch

    def grid_problems(self, height: int, width: int) -> list[str]:
        """Why a latent of `height` x `width` does not fit the patches, the 2x2 compression and the blocks."""
        step = 2 * self.patch
        if height % step or width % step or height < step or width < step:
            return [f"latent {height}x{width}: both sides must be positive multiples of {step} (2 x patch {self.patch})"]
        rows, cols = self.grid(height, width)
        found = []
        for stage, kind in zip(STAGES, self.attention, strict=True):
            if kind != "assa":
                continue
            h, w = (rows // 2, cols // 2) if stage == "middle" else (rows, cols)
            if h % 2 or w % 2:
                found.append(f"{h}x{w} tokens of stage {stage} do not divide into the 2x2 groups of its compression")
            elif h * w % self.blocks:
                found.append(f"{h}x{w} tokens of stage {stage} do not divide into {self.blocks} blocks")
        return [f"latent {height}x{width}: {'; '.join(found)}"] if found else []


def dit_of(config: ModelConfig) -> DiTConfig:
    """The student of a configuration of the elastic diffusion transformer."""
    assert isinstance(config.student, DiTConfig)  # the registry gave its reader this class
    return config.student
