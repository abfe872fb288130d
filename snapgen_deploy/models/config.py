"""Configurations of the three components. Every published hyperparameter of SnapGen++ is a field.

Figures without a source in the paper (arXiv 2601.08303) are our choice and say so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

StageKind = Literal["assa", "full"]
STAGES: tuple[str, str, str] = ("down", "middle", "up")


@dataclass(frozen=True)
class TextStream:
    """One text encoder whose tokens the student attends to; streams are concatenated along tokens."""

    name: str
    dim: int
    length: int


@dataclass(frozen=True)
class DiTConfig:
    """Hyperparameters of the elastic three-stage diffusion transformer."""

    latent_channels: int = 16
    latent_factor: int = 8
    patch: int = 2
    hidden: int = 2048  # at width 1.0; not published, fits the published parameter counts
    head_dim: int = 64  # not published
    kv_group: int = 2  # query heads per key/value head; gives the published 8 KV heads at 0.5x
    depths: tuple[int, int, int] = (8, 10, 10)  # blocks in Down, Middle, Up
    attention: tuple[StageKind, StageKind, StageKind] = ("assa", "full", "assa")
    ffn_ratios: tuple[int, int, int] = (4, 3, 4)
    blocks: int = 16  # B: blocks of the token sequence in the local branch
    radius: int = 1  # r: block b attends to blocks b-r ... b+r
    text_streams: tuple[TextStream, ...] = (TextStream("text", 512, 77), TextStream("llm", 2560, 128))
    text_width: int = 768  # common width that every stream is projected to
    cross_dim: int = 1024  # inner width of cross-attention, the same at every network width
    time_features: int = 256  # sinusoidal features of sigma, PixArt-alpha
    rope_theta: float = 10000.0
    absolute_positions: bool = True  # PixArt-alpha's fixed sine-cosine table; RoPE alone cannot tell the top from the bottom
    widths: dict[str, float] = field(default_factory=lambda: {"tiny": 0.375, "small": 0.5, "full": 1.0})

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
        """What makes this configuration inadmissible, one line each; empty when it is sound."""
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
        if self.blocks < 1 or self.radius < 0:
            found.append(f"blocks must be >= 1 and radius >= 0, got {self.blocks} and {self.radius}")
        if not self.text_streams:
            found.append("at least one text stream is needed")
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
                found.append(f"{h}x{w} tokens of stage {stage} do not divide into 2x2 for its compression")
            elif h * w % self.blocks:
                found.append(f"{h}x{w} tokens of stage {stage} do not divide into {self.blocks} blocks")
        return [f"latent {height}x{width}: {'; '.join(found)}"] if found else []


@dataclass(frozen=True)
class DecoderConfig:
    """SnapGen's tiny decoder (arXiv 2412.09619): no attention, separable residual blocks."""

    latent_channels: int = 16
    channels: tuple[int, ...] = (256, 128, 64, 32)  # per level, from the latent up; not published
    blocks: tuple[int, ...] = (4, 3, 3, 2)
    expand: int = 2
    groups: int = 8
    latent_mean: tuple[float, ...] = ()  # per channel; () means zeros
    latent_std: tuple[float, ...] = ()  # per channel; () means ones

    @property
    def factor(self) -> int:
        """Pixels per latent cell along one axis."""
        return int(2 ** (len(self.channels) - 1))


@dataclass(frozen=True)
class TextEncoderConfig:
    """A small bidirectional transformer over word or subword tokens."""

    vocab: int = 49408  # CLIP's byte-pair vocabulary
    length: int = 77
    width: int = 512
    layers: int = 6
    heads: int = 8
    stream: str = "text"  # which of the student's text streams it feeds


@dataclass(frozen=True)
class ModelConfig:
    """All components of a checkpoint; a component that the checkpoint lacks is None."""

    student: DiTConfig
    decoder: DecoderConfig | None
    text_encoder: TextEncoderConfig | None
    name: str = "unnamed"
    trained: bool = True
    shift: float = 3.0  # time shift of the flow-matching schedule, published
    steps: int = 4
    resolution: tuple[int, int] = (1024, 1024)  # default picture height, width in pixels
    prompts: tuple[str, ...] = ()  # shown and checked by every export


def snapgenpp() -> ModelConfig:
    """Full scale: 0.3B / 0.4B / 1.6B students for 1024 x 1024 pictures."""
    return ModelConfig(DiTConfig(), DecoderConfig(), TextEncoderConfig(), name="snapgenpp", trained=False)


SHAPES_PROMPTS = (
    "a red ring left of a blue square on a gray background",
    "a large yellow circle at the top and a small purple triangle at the bottom right on a black background",
    "a pink cross at the left, a green diamond at the center and an orange square at the right on a white background",
    "a small cyan diamond above a large orange circle on a navy background",
)


def shapes() -> ModelConfig:
    """The embedded checkpoint: 128 x 128 pictures of coloured shapes; sizes chosen to train on a CPU."""
    student = DiTConfig(
        latent_channels=4,
        hidden=256,
        head_dim=16,
        depths=(2, 6, 2),
        blocks=8,
        text_streams=(TextStream("text", 128, 40),),
        text_width=128,
        cross_dim=128,
    )
    decoder = DecoderConfig(latent_channels=4, channels=(96, 64, 32, 16), blocks=(2, 2, 1, 0))
    text = TextEncoderConfig(vocab=64, length=40, width=128, layers=3, heads=4)
    return ModelConfig(student, decoder, text, name="shapes", resolution=(128, 128), prompts=SHAPES_PROMPTS)


PRESETS = {"snapgenpp": snapgenpp, "shapes": shapes}
