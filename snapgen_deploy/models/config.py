"""Configurations of the three components. Every published hyperparameter of SnapGen++ is a field.

Figures without a source in the paper (arXiv 2601.08303) are our choice and say so.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, GetCoreSchemaHandler, StrictBool
from pydantic_core import CoreSchema

from snapgen_deploy.system.typed import Number

StageKind = Literal["assa", "full"]
STAGES: tuple[str, str, str] = ("down", "middle", "up")

# Bounds on what a document may ask for, so that a hostile one cannot make us build millions of modules. Both are far
# above any published model of this family (28 blocks, 262144 words).
LARGEST_SIZE = 1 << 20
LARGEST_DEPTH = 512
MOST_STEPS = 1000
MOST_LEVELS = LARGEST_SIZE.bit_length()  # of a decoder: each doubles the picture
LEAST_SHIFT = 1e-3  # beyond it and its inverse, steps of the schedule fall together


def _name(pattern: str, expected: str) -> AfterValidator:
    """Holds a text against a regular expression."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(expected)
        return value

    return AfterValidator(check)


Size = Annotated[int, Field(strict=True, ge=1, le=LARGEST_SIZE)]
Depth = Annotated[int, Field(strict=True, ge=1, le=LARGEST_DEPTH)]  # counts modules
Positive = Annotated[Number, Field(gt=0)]
# Names of widths and streams become parts of tensor and file names; the bundle's folder is called by the checkpoint's.
Name = Annotated[str, _name(r"[A-Za-z][A-Za-z0-9_]{0,63}", "letters, digits and '_', from a letter on")]
Prompt = Annotated[str, Field(pattern=r"\S", description="a non-empty string")]  # a pattern refuses lone surrogates, too
FolderName = Annotated[
    str, _name(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "letters, digits, '.', '_' and '-', from a letter or digit on")
]


class Document:
    """A part of the configuration: its document has every field, whatever the field's default, and nothing else."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema of the dataclass, without the defaults: they are for code, a document that relies on them is cut."""
        schema = handler(source)
        inner: Any = handler.resolve_ref_schema(schema)
        for each in inner["schema"]["fields"]:
            if each["schema"]["type"] == "default":
                each["schema"] = each["schema"]["schema"]
        return schema


@dataclass(frozen=True)
class TextStream(Document):
    """One text encoder whose tokens the student attends to; streams are concatenated along tokens."""

    name: Name
    dim: Size
    length: Size


@dataclass(frozen=True)
class DiTConfig(Document):
    """Hyperparameters of the elastic three-stage diffusion transformer."""

    latent_channels: Size = 16
    latent_factor: Size = 8
    patch: Size = 2
    hidden: Size = 2048  # at width 1.0; not published, fits the published parameter counts
    head_dim: Size = 64  # not published
    kv_group: Size = 2  # query heads per key/value head; gives the published 8 KV heads at 0.5x
    depths: tuple[Depth, Depth, Depth] = (8, 10, 10)  # blocks in Down, Middle, Up
    attention: tuple[StageKind, StageKind, StageKind] = ("assa", "full", "assa")
    ffn_ratios: tuple[Size, Size, Size] = (4, 3, 4)
    blocks: Size = 16  # B: blocks of the token sequence in the local branch
    radius: Annotated[int, Field(strict=True, ge=0, le=LARGEST_SIZE)] = 1  # r: block b attends to blocks b-r ... b+r
    text_streams: Annotated[tuple[TextStream, ...], Field(min_length=1)] = (
        TextStream("text", 512, 77),
        TextStream("llm", 2560, 128),
    )
    text_width: Size = 768  # common width that every stream is projected to
    cross_dim: Size = 1024  # inner width of cross-attention, the same at every network width
    time_features: Size = 256  # sinusoidal features of sigma, PixArt-alpha
    rope_theta: Positive = 10000.0
    absolute_positions: StrictBool = True  # PixArt-alpha's fixed sine-cosine table; RoPE alone cannot tell top from bottom
    widths: Annotated[dict[Name, Annotated[Positive, Field(le=LARGEST_SIZE)]], Field(min_length=1)] = field(
        default_factory=lambda: {"tiny": 0.375, "small": 0.5, "full": 1.0}
    )

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
class DecoderConfig(Document):
    """SnapGen's tiny decoder (arXiv 2412.09619): no attention, separable residual blocks."""

    latent_channels: Size = 16
    # Per level, from the latent up; not published.
    channels: Annotated[tuple[Size, ...], Field(min_length=1, max_length=MOST_LEVELS)] = (256, 128, 64, 32)
    blocks: tuple[Annotated[int, Field(strict=True, ge=0, le=LARGEST_DEPTH)], ...] = (4, 3, 3, 2)
    expand: Size = 2
    groups: Size = 8
    latent_mean: tuple[Number, ...] = ()  # per channel; () means zeros
    latent_std: tuple[Positive, ...] = ()  # per channel; () means ones

    @property
    def factor(self) -> int:
        """Pixels per latent cell along one axis."""
        return int(2 ** (len(self.channels) - 1))


@dataclass(frozen=True)
class TextEncoderConfig(Document):
    """A small bidirectional transformer over word or subword tokens."""

    vocab: Size = 49408  # CLIP's byte-pair vocabulary
    length: Size = 77
    width: Size = 512
    layers: Depth = 6
    heads: Size = 8
    stream: str = "text"  # which of the student's text streams it feeds


@dataclass(frozen=True)
class ModelConfig(Document):
    """All components of a checkpoint; a component that the checkpoint lacks is None."""

    student: DiTConfig
    decoder: DecoderConfig | None
    text_encoder: TextEncoderConfig | None
    name: FolderName = "unnamed"
    trained: StrictBool = True
    shift: Annotated[Number, Field(ge=LEAST_SHIFT, le=1 / LEAST_SHIFT)] = 3.0  # of the flow-matching schedule, published
    steps: Annotated[int, Field(strict=True, ge=1, le=MOST_STEPS)] = 4
    resolution: tuple[Size, Size] = (1024, 1024)  # default picture height, width in pixels
    prompts: tuple[Prompt, ...] = ()  # shown and checked by every export


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
