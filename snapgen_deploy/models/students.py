"""What the config.json of a student of `diffusers` says; the library is not imported for it.

A value that is missing would be the library's default, which is that of one published model. So those that decide shapes must
be there, as `save_pretrained` writes them, and those that nothing here converts must have the values of `FIXED`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.config import (
    LARGEST_DEPTH,
    LARGEST_INT,
    MOST_LEVELS,
    PROMPT_PLACE,
    Depth,
    Document,
    Positive,
    PositiveInt,
    Settings,
    TextStream,
)
from snapgen_deploy.models.diffusers_classes import class_named, fixed_problems, library_class
from snapgen_deploy.models.schedule import Schedule
from snapgen_deploy.models.schedulers import Spacing, schedule_from
from snapgen_deploy.system.documents import in_one_line
from snapgen_deploy.system.typed import Number, read_as

ONLY = "full"  # the width's name: none of these networks is elastic
_OFF: tuple[Any, ...] = (None, False)


class StudentFacts:
    """What general code needs to know of a student's network, as most of them have it; a class overrides what differs."""

    MODULE: ClassVar[str]  # below diffusers.models
    FIXED: ClassVar[Mapping[str, Sequence[Any]]] = MappingProxyType({})  # settings of which only these values are converted
    EVEN: ClassVar[bool] = False  # its pipeline sets even noise levels
    GUIDANCE: ClassVar[float] = 0.0  # scale that its pipeline embeds, where the network reads one
    FACTOR: ClassVar[int] = 8  # pixels for each cell of the latent along one axis, with its usual autoencoder
    SHIFTS: ClassVar[bool] = False  # its pipeline tells the scheduler how many tokens the picture has
    CANVAS: ClassVar[int] = 1  # latents side by side that the network reads

    @property
    def latent(self) -> int:
        """Channels of the latent."""
        return self._setting("in_channels")

    @property
    def unit(self) -> int:
        """Both sides of a latent are multiples of it."""
        return self._setting("patch_size")

    @property
    def patch(self) -> int:
        """Side of a token's patch."""
        return self.unit

    @property
    def side(self) -> int:
        """Side of the latent that it was configured for."""
        return self._setting("sample_size")

    @property
    def largest(self) -> int | None:
        """Longest side of a latent that its table of positions holds; None where there is no such table."""
        return None

    @property
    def layers(self) -> int:
        """Blocks that repeat."""
        return self._setting("num_layers")

    @property
    def hidden(self) -> int:
        """Channels of its hidden states."""
        return self.heads * self._setting("attention_head_dim")

    @property
    def heads(self) -> int:
        """Of self-attention."""
        return self._setting("num_attention_heads")

    @property
    def tokens(self) -> int:
        """Cells of the latent for each token."""
        return self.patch * self.patch

    def positions(self, latent: tuple[int, int]) -> int:
        """How many tokens of the largest map the network reads for a latent."""
        return self.CANVAS * latent[0] * latent[1] // self.tokens

    @property
    def features(self) -> int:
        """Sinusoidal features of the timestep."""
        return 256

    @property
    def timestep_scale(self) -> float:
        """What its pipeline multiplies the timestep by."""
        return 1.0

    @property
    def embeds_guidance(self) -> bool:
        """Whether it reads a guidance scale."""
        return False

    @property
    def expansion(self) -> int:
        """Channels inside of a feed-forward layer, for each of the hidden states'."""
        return 4

    @property
    def has_constants(self) -> bool:
        """Whether the library's network computes tables that no checkpoint holds."""
        return False

    def scores(self, tokens: int, text: int) -> int:
        """Elements of the largest attention's scores, of one head."""
        return tokens * max(tokens, text)

    def streams(self) -> list[dict[str, Any]]:
        """Its text streams, with the names and lengths that its pipelines have."""
        return [{"name": "text", "dim": self._setting("caption_channels"), "length": 300}]

    def reading(self, index: int) -> dict[str, Any]:
        """How its pipelines read the text of a stream: fields of a text encoder's TOML file that are not the default."""
        return {}

    def _setting(self, name: str) -> int:
        """A field that the classes name alike."""
        return int(getattr(self, name))


@dataclass(frozen=True)
class _PixArt(StudentFacts):
    """PixArtTransformer2DModel: PixArt-alpha and PixArt-Sigma."""

    MODULE: ClassVar[str] = "transformers.pixart_transformer_2d"
    FIXED: ClassVar[Mapping[str, Sequence[Any]]] = {
        "norm_type": ("ada_norm_single",), "activation_fn": ("gelu-approximate",), "norm_elementwise_affine": _OFF,
        "attention_type": ("default", None),
    }  # fmt: skip
    in_channels: PositiveInt
    num_layers: Depth
    num_attention_heads: PositiveInt
    attention_head_dim: PositiveInt
    patch_size: PositiveInt
    sample_size: PositiveInt
    caption_channels: PositiveInt
    cross_attention_dim: PositiveInt
    out_channels: PositiveInt | None = None
    use_additional_conditions: bool | None = None

    @property
    def has_constants(self) -> bool:
        return True

    @property
    def reads_size(self) -> bool:
        """Whether the picture's size and aspect ratio are embedded."""
        return self.sample_size == 128 if self.use_additional_conditions is None else self.use_additional_conditions


@dataclass(frozen=True)
class _Sana(StudentFacts):
    """SanaTransformer2DModel: SANA and SANA-Sprint."""

    MODULE: ClassVar[str] = "transformers.sana_transformer"
    GUIDANCE: ClassVar[float] = 4.5
    FACTOR: ClassVar[int] = 32
    FIXED: ClassVar[Mapping[str, Sequence[Any]]] = {"norm_elementwise_affine": _OFF}
    in_channels: PositiveInt
    num_layers: Depth
    num_attention_heads: PositiveInt
    attention_head_dim: PositiveInt
    num_cross_attention_heads: PositiveInt
    cross_attention_head_dim: PositiveInt
    cross_attention_dim: PositiveInt
    caption_channels: PositiveInt
    mlp_ratio: Positive
    sample_size: PositiveInt
    patch_size: PositiveInt
    out_channels: PositiveInt | None = None
    guidance_embeds: bool = False
    guidance_embeds_scale: Number = 0.1
    qk_norm: Literal["rms_norm_across_heads"] | None = None
    timestep_scale: Positive = 1.0
    interpolation_scale: Number | None = None

    @property
    def embeds_guidance(self) -> bool:
        return self.guidance_embeds

    @property
    def expansion(self) -> int:
        return math.ceil(3 * self.mlp_ratio)

    @property
    def has_constants(self) -> bool:
        return self.interpolation_scale is not None

    def scores(self, tokens: int, text: int) -> int:
        return tokens * text


@dataclass(frozen=True)
class _SD3(StudentFacts):
    """SD3Transformer2DModel: Stable Diffusion 3 and 3.5."""

    MODULE: ClassVar[str] = "transformers.transformer_sd3"
    SHIFTS: ClassVar[bool] = True
    in_channels: PositiveInt
    num_layers: Depth
    num_attention_heads: PositiveInt
    attention_head_dim: PositiveInt
    joint_attention_dim: PositiveInt
    caption_projection_dim: PositiveInt
    pooled_projection_dim: PositiveInt
    patch_size: PositiveInt
    sample_size: PositiveInt
    pos_embed_max_size: PositiveInt
    out_channels: PositiveInt | None = None
    qk_norm: Literal["rms_norm"] | None = None

    @property
    def largest(self) -> int | None:
        return self.pos_embed_max_size * self.patch_size

    def scores(self, tokens: int, text: int) -> int:
        return (tokens + text) ** 2

    def streams(self) -> list[dict[str, Any]]:
        """CLIP-L, CLIP-bigG, whose channels are to each other as 768 and 1280, and T5."""
        first = self.pooled_projection_dim * 3 // 8
        clips = [("clip_l", first), ("clip_g", self.pooled_projection_dim - first)]
        pooled = [{"name": name, "dim": dim, "length": 77, "pooled": dim} for name, dim in clips]
        return [*pooled, {"name": "t5", "dim": self.joint_attention_dim, "length": 256}]

    def reading(self, index: int) -> dict[str, Any]:
        """No padding is masked; of CLIP the last hidden state but one is taken."""
        return {"padding_seen": True, **({"layer": -2, "projected": True} if index < 2 else {})}


@dataclass(frozen=True)
class _Flux(StudentFacts):
    """FluxTransformer2DModel, of whose packed latents a token is 2 x 2 cells."""

    MODULE: ClassVar[str] = "transformers.transformer_flux"
    EVEN: ClassVar[bool] = True
    SHIFTS: ClassVar[bool] = True
    GUIDANCE: ClassVar[float] = 3.5
    FIXED: ClassVar[Mapping[str, Sequence[Any]]] = {"patch_size": (1,)}
    in_channels: Annotated[int, Field(strict=True, ge=4, le=LARGEST_INT, multiple_of=4)]
    num_layers: Depth
    num_single_layers: Depth
    num_attention_heads: PositiveInt
    attention_head_dim: PositiveInt
    joint_attention_dim: PositiveInt
    pooled_projection_dim: PositiveInt
    axes_dims_rope: tuple[PositiveInt, PositiveInt, PositiveInt]
    guidance_embeds: bool = False

    @property
    def latent(self) -> int:
        return self.in_channels // 4

    @property
    def unit(self) -> int:
        return 2

    @property
    def side(self) -> int:
        return 128  # its pipeline's default

    @property
    def layers(self) -> int:
        return self.num_layers + self.num_single_layers

    @property
    def embeds_guidance(self) -> bool:
        return self.guidance_embeds

    @property
    def expansion(self) -> int:
        return 5

    def scores(self, tokens: int, text: int) -> int:
        return (tokens + text) ** 2

    def streams(self) -> list[dict[str, Any]]:
        """CLIP-L, of which only the pooled vector is read, and T5."""
        pooled = self.pooled_projection_dim
        clip = {"name": "clip", "dim": pooled, "length": 77, "pooled": pooled}
        return [clip, {"name": "t5", "dim": self.joint_attention_dim, "length": 512}]

    def reading(self, index: int) -> dict[str, Any]:
        """No padding is masked."""
        return {"padding_seen": True, **({"projected": False} if index == 0 else {})}


@dataclass(frozen=True)
class _Levels(StudentFacts):
    """UNet2DConditionModel: Stable Diffusion, SDXL, and what was distilled from them."""

    MODULE: ClassVar[str] = "unets.unet_2d_condition"
    FIXED: ClassVar[Mapping[str, Sequence[Any]]] = {
        **dict.fromkeys(("center_input_sample", "dual_cross_attention", "only_cross_attention", "class_embed_type",
                         "num_class_embeds", "encoder_hid_dim", "time_cond_proj_dim", "time_embedding_act_fn",
                         "timestep_post_act", "resnet_skip_time_act", "cross_attention_norm"), _OFF),
        "act_fn": ("silu",), "flip_sin_to_cos": (True,), "freq_shift": (0,), "time_embedding_type": ("positional",),
        "attention_type": ("default", None), "resnet_time_scale_shift": ("default",), "downsample_padding": (1,),
        "resnet_out_scale_factor": (1.0,), "mid_block_scale_factor": (1,), "reverse_transformer_layers_per_block": _OFF,
        "addition_embed_type": (None, "text_time"), "mid_block_type": ("UNetMidBlock2DCrossAttn", None),
    }  # fmt: skip
    in_channels: PositiveInt
    out_channels: PositiveInt
    sample_size: PositiveInt
    block_out_channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=MOST_LEVELS)]
    layers_per_block: Depth | tuple[Depth, ...]
    cross_attention_dim: PositiveInt
    attention_head_dim: PositiveInt | tuple[PositiveInt, ...]
    transformer_layers_per_block: Depth | tuple[Depth, ...] = 1
    addition_embed_type: Literal["text_time"] | None = None
    addition_time_embed_dim: PositiveInt | None = None
    projection_class_embeddings_input_dim: PositiveInt | None = None

    @property
    def unit(self) -> int:
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def patch(self) -> int:
        return 1

    @property
    def layers(self) -> int:
        levels = len(self.block_out_channels)
        layers, deep = (
            max(value) if isinstance(value, tuple) else value
            for value in (self.layers_per_block, self.transformer_layers_per_block)
        )
        return (2 * layers + 1) * (1 + deep) * levels

    @property
    def hidden(self) -> int:
        return self.block_out_channels[0]

    @property
    def heads(self) -> int:
        """The library calls their number `attention_head_dim`."""
        return max(self.attention_head_dim) if isinstance(self.attention_head_dim, tuple) else self.attention_head_dim

    @property
    def features(self) -> int:
        return self.block_out_channels[0]

    @property
    def expansion(self) -> int:
        return 8

    def streams(self) -> list[dict[str, Any]]:
        """CLIP's, or those of both CLIPs of SDXL, the second with a pooled vector."""
        if self.addition_embed_type is None:
            return [{"name": "text", "dim": self.cross_attention_dim, "length": 77}]
        pooled = (self.projection_class_embeddings_input_dim or 0) - 6 * (self.addition_time_embed_dim or 0)
        if not 0 < pooled < self.cross_attention_dim:
            raise BadInput(f"student: config.json: a pooled vector of {pooled} channels, expected 1 or more")
        first = {"name": "clip_l", "dim": self.cross_attention_dim - pooled, "length": 77}
        return [first, {"name": "clip_g", "dim": pooled, "length": 77, "pooled": pooled}]

    def reading(self, index: int) -> dict[str, Any]:
        """No padding is masked; SDXL takes the last hidden state but one."""
        usual = {"padding_seen": True}
        return usual if self.addition_embed_type is None else {**usual, "layer": -2, "projected": True}


@dataclass(frozen=True)
class _DreamLite(_Levels):
    """DreamLiteUNetModel. Beside the latent it reads that of a picture to edit, which is zeros where there is none."""

    MODULE: ClassVar[str] = "unets.unet_dreamlite"
    EVEN: ClassVar[bool] = True
    SHIFTS: ClassVar[bool] = True
    CANVAS: ClassVar[int] = 2
    FIXED: ClassVar[Mapping[str, Sequence[Any]]] = {
        **{name: values for name, values in _Levels.FIXED.items() if name not in ("encoder_hid_dim", "addition_embed_type")},
        "mid_block_type": ("DreamLiteUNetMidBlock2DCrossAttn", "UNetMidBlock2DCrossAttn", None),
    }  # fmt: skip
    sample_size: PositiveInt | None  # type: ignore[assignment]
    down_block_types: tuple[str, ...] = ()
    addition_embed_type: Literal["time"] | None = None  # type: ignore[assignment]
    encoder_hid_dim: PositiveInt | None = None
    encoder_hid_dim_type: Literal["text_proj", "text_proj_rms"] | None = None
    qk_norm: Literal["rms_norm"] | None = "rms_norm"
    num_kv_heads: PositiveInt | None = 1
    ff_mult: PositiveInt = 6

    @property
    def side(self) -> int:
        return self.sample_size or 128  # its pipeline's default

    @property
    def expansion(self) -> int:
        return 2 * self.ff_mult

    def scores(self, tokens: int, text: int) -> int:
        """Of self-attention only at levels whose blocks have it; at all of them where their classes are not said."""
        kinds = self.down_block_types or ("CrossAttn",) * len(self.block_out_channels)
        own = [i for i, kind in enumerate(kinds) if "CrossAttn" in kind and "SelfAttn" not in kind]
        return max([tokens * text, *((tokens >> 2 * i) ** 2 for i in own)])

    def streams(self) -> list[dict[str, Any]]:
        """Qwen3-VL's last hidden state."""
        return [{"name": "text", "dim": self.encoder_hid_dim or self.cross_attention_dim, "length": 200}]

    def reading(self, index: int) -> dict[str, Any]:
        """The template of its pipeline, of which the student does not see the first tokens, wherever its tokenizer pads."""
        pipeline = library_class("pipelines.dreamlite.pipeline_dreamlite_mobile", "DreamLiteMobilePipeline")
        made = pipeline(*(None,) * 6)
        template = made.prompt_template_encode_generate.format(f"[Generate]: {PROMPT_PLACE}")
        return {"template": template, "dropped": made.prompt_template_encode_generate_start_idx, "padding": "right"}


STUDENTS: Mapping[str, type[StudentFacts]] = MappingProxyType(
    {
        "PixArtTransformer2DModel": _PixArt,
        "SanaTransformer2DModel": _Sana,
        "SD3Transformer2DModel": _SD3,
        "FluxTransformer2DModel": _Flux,
        "UNet2DConditionModel": _Levels,
        "DreamLiteUNetModel": _DreamLite,
    }
)


def student_class(config: Mapping[str, Any]) -> str:
    """The class that a student's config.json names.

    Raises:
        BadInput: if it is none of `STUDENTS`.
    """
    return class_named(config, STUDENTS, "student: ")


def student_facts(config: Mapping[str, Any]) -> StudentFacts:
    """What a student's config.json says.

    Raises:
        BadInput: if its class is not known, or a value is missing, of the wrong kind, or one that is not converted; one message
            for all problems.
    """
    kind = student_class(config)
    facts, problems = read_as(STUDENTS[kind], dict(config))
    problems = [*problems, *fixed_problems(config, STUDENTS[kind].FIXED)]
    if facts is None or problems:
        raise BadInput(in_one_line(f"student: config.json of {kind}", problems))
    return facts


@dataclass(frozen=True)
class LibraryStudent(Document):
    """A student that is a class of diffusers, by the configurations that the library wrote for it and its scheduler."""

    LATER: ClassVar[frozenset[str]] = frozenset({"guidance_embedded"})
    UNWRITTEN: ClassVar[frozenset[str]] = LATER

    library: Literal["diffusers"]
    config: Settings = field(hash=False)
    scheduler: Settings = field(hash=False)
    latent_factor: PositiveInt  # pixels for each cell of the latent along one axis, which its autoencoder decides
    text_streams: Annotated[tuple[TextStream, ...], Field(min_length=1)]
    guidance_embedded: Number = 0.0  # scale that a network reads which embeds one

    @property
    def facts(self) -> StudentFacts:
        """What config.json says.

        Raises:
            BadInput: as `student_facts`.
        """
        return student_facts(self.config)

    @property
    def latent_channels(self) -> int:
        """Channels of the latent."""
        return self.facts.latent

    @property
    def time_features(self) -> int:
        """Sinusoidal features of the timestep."""
        return self.facts.features

    @property
    def widths(self) -> Mapping[str, float]:
        """The only one."""
        return MappingProxyType({ONLY: 1.0})

    def schedule(self, steps: int, latent: tuple[int, int]) -> Schedule:
        """The noise levels, timesteps and coefficients of its scheduler for latents of one size.

        Raises:
            BadInput: if the scheduler is not one that is taken, or has no such number of steps.
        """
        facts = self.facts
        spacing = Spacing(steps, facts.EVEN, facts.timestep_scale, self.shift_tokens(latent))
        return schedule_from(self.scheduler, spacing, facts.features)

    @property
    def shifts_by_size(self) -> bool:
        """Whether the scheduler's noise levels depend on the picture's size."""
        return bool(self.scheduler.get("use_dynamic_shifting"))

    def shift_tokens(self, latent: tuple[int, int]) -> int:
        """How many tokens a pipeline tells the scheduler that the picture has, one for 2 x 2 cells; 0 where it tells none."""
        return latent[0] * latent[1] // 4 if self.facts.SHIFTS else 0

    def problems(self) -> list[str]:
        """Why this configuration is invalid, one line each; empty if it is valid."""
        try:
            facts = self.facts
            self.schedule(1, (facts.side, facts.side))
        except BadInput as error:
            return [str(error).removeprefix("student: ")]
        read = facts.streams()
        if len(self.text_streams) != len(read):
            return [f"text_streams: got {len(self.text_streams)} of them, expected {len(read)}"]
        found = []
        for s, wanted in zip(self.text_streams, read, strict=True):
            pooled = wanted.get("pooled", 0)
            if (s.dim, s.pooled) != (wanted["dim"], pooled):
                got = f"got {s.dim} channels and a pooled vector of {s.pooled}"
                found.append(f"text_streams: {s.name}: {got}, expected {wanted['dim']} and {pooled}")
        if self.guidance_embedded and not facts.embeds_guidance:
            found.append("guidance_embedded: got a scale, and the network embeds none")
        if facts.layers > LARGEST_DEPTH:
            found.append(f"got {facts.layers} blocks, expected at most {LARGEST_DEPTH}")
        return found

    def latent_problems(self, height: int, width: int) -> list[str]:
        """Why a latent of `height` x `width` does not fit."""
        unit, largest = self.facts.unit, self.facts.largest
        if min(height, width) < unit or height % unit or width % unit:
            return [f"latent {height}x{width}: both sides must be positive multiples of {unit}"]
        if largest is not None and max(height, width) > largest:
            return [f"latent {height}x{width}: the table of positions holds sides of up to {largest}"]
        return []


def library_student_of(student: object) -> LibraryStudent:
    """The student of a configuration of the family."""
    assert isinstance(student, LibraryStudent)  # the registry gave its reader this class
    return student
