"""What the config.json of an autoencoder of `diffusers` says of its decoder; the library is not imported for it.

A value that is missing would be the library's default, which for scale and shift of the latent is that of one published model.
So those that decide shapes and the latent's normalisation must be there, as `save_pretrained` writes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import Field

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.config import LARGEST_DEPTH, MOST_LEVELS, Depth, LibraryDecoder, Positive, PositiveInt
from snapgen_deploy.models.diffusers_classes import class_named
from snapgen_deploy.system.documents import in_one_line
from snapgen_deploy.system.typed import Number, read_as

_Some = Annotated[int, Field(strict=True, ge=0, le=LARGEST_DEPTH)]
_Channels = Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=MOST_LEVELS)]
_PerChannel = Annotated[tuple[Number, ...], Field(min_length=1)]
_Deviations = Annotated[tuple[Positive, ...], Field(min_length=1)]


class Facts(Protocol):
    """What general code needs to know of an autoencoder."""

    MODULE: ClassVar[str]  # below diffusers.models.autoencoders
    VIDEO: ClassVar[bool]  # its tensors have a frame axis

    @property
    def latent(self) -> int:
        """Channels of the latent."""

    @property
    def factor(self) -> int:
        """Pixels per latent cell along one axis."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the decoder's maps, from the latent up; each level but the first doubles a side."""

    @property
    def blocks(self) -> int:
        """Layers that repeat, of encoder and decoder."""

    @property
    def attends(self) -> bool:
        """Whether every position of the latent's map attends to every other."""

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation that the decoder undoes: one of each, or one for each channel."""


@dataclass(frozen=True)
class _Tiny:
    """AutoencoderTiny, the TAESD family."""

    MODULE: ClassVar[str] = "autoencoder_tiny"
    VIDEO: ClassVar[bool] = False
    latent_channels: PositiveInt
    decoder_block_out_channels: _Channels
    num_decoder_blocks: Annotated[tuple[_Some, ...], Field(min_length=1, max_length=MOST_LEVELS)]
    upsampling_scaling_factor: PositiveInt = 2
    scaling_factor: Positive = 1.0  # it was trained so, and the library's default says it, too
    shift_factor: Number = 0.0

    @property
    def latent(self) -> int:
        return self.latent_channels

    @property
    def factor(self) -> int:
        return int(self.upsampling_scaling_factor ** (len(self.num_decoder_blocks) - 1))

    @property
    def channels(self) -> tuple[int, ...]:
        return self.decoder_block_out_channels

    @property
    def blocks(self) -> int:
        return sum(self.num_decoder_blocks)

    @property
    def attends(self) -> bool:
        return False

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return (self.shift_factor,), (1.0 / self.scaling_factor,)


@dataclass(frozen=True)
class _KL:
    """AutoencoderKL: Stable Diffusion, Flux."""

    MODULE: ClassVar[str] = "autoencoder_kl"
    VIDEO: ClassVar[bool] = False
    latent_channels: PositiveInt
    block_out_channels: _Channels
    layers_per_block: Depth
    scaling_factor: Positive
    shift_factor: Number | None = None
    latents_mean: _PerChannel | None = None
    latents_std: _Deviations | None = None
    mid_block_add_attention: bool = True

    @property
    def latent(self) -> int:
        return self.latent_channels

    @property
    def factor(self) -> int:
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def channels(self) -> tuple[int, ...]:
        return self.block_out_channels[::-1]

    @property
    def blocks(self) -> int:
        return 2 * (self.layers_per_block + 1) * len(self.block_out_channels)

    @property
    def attends(self) -> bool:
        return self.mid_block_add_attention

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """As the pipelines: latent / scale + shift, or latent * deviation / scale + mean where there are some per channel."""
        if self.latents_mean is not None and self.latents_std is not None:
            return self.latents_mean, tuple(v / self.scaling_factor for v in self.latents_std)
        return (self.shift_factor or 0.0,), (1.0 / self.scaling_factor,)


@dataclass(frozen=True)
class _DC:
    """AutoencoderDC: SANA."""

    MODULE: ClassVar[str] = "autoencoder_dc"
    VIDEO: ClassVar[bool] = False
    latent_channels: PositiveInt
    decoder_block_out_channels: _Channels
    decoder_layers_per_block: Annotated[tuple[_Some, ...], Field(min_length=1, max_length=MOST_LEVELS)]
    scaling_factor: Positive

    @property
    def latent(self) -> int:
        return self.latent_channels

    @property
    def factor(self) -> int:
        return int(2 ** (len(self.decoder_block_out_channels) - 1))

    @property
    def channels(self) -> tuple[int, ...]:
        return self.decoder_block_out_channels[::-1]

    @property
    def blocks(self) -> int:
        return 2 * sum(self.decoder_layers_per_block)

    @property
    def attends(self) -> bool:
        return False

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return (0.0,), (1.0 / self.scaling_factor,)


@dataclass(frozen=True)
class _Video:
    """AutoencoderKLQwenImage."""

    MODULE: ClassVar[str] = "autoencoder_kl_qwenimage"
    VIDEO: ClassVar[bool] = True
    z_dim: PositiveInt
    base_dim: PositiveInt
    dim_mult: _Channels
    num_res_blocks: Depth
    latents_mean: _PerChannel
    latents_std: _Deviations

    @property
    def latent(self) -> int:
        return self.z_dim

    @property
    def factor(self) -> int:
        return int(2 ** (len(self.dim_mult) - 1))

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(self.base_dim * times for times in self.dim_mult[::-1])

    @property
    def blocks(self) -> int:
        return 2 * (self.num_res_blocks + 1) * len(self.dim_mult)

    @property
    def attends(self) -> bool:
        return True

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.latents_mean, self.latents_std


@dataclass(frozen=True)
class _Wan(_Video):
    """AutoencoderKLWan, whose newer version makes patches of pixels."""

    MODULE: ClassVar[str] = "autoencoder_kl_wan"
    decoder_base_dim: PositiveInt | None = None
    patch_size: PositiveInt | None = None

    @property
    def factor(self) -> int:
        return super().factor * (self.patch_size or 1)

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple((self.decoder_base_dim or self.base_dim) * times for times in self.dim_mult[::-1])


AUTOENCODERS: Mapping[str, type[Facts]] = MappingProxyType(
    {
        "AutoencoderTiny": _Tiny,
        "AutoencoderKL": _KL,
        "AutoencoderDC": _DC,
        "AutoencoderKLQwenImage": _Video,
        "AutoencoderKLWan": _Wan,
    }
)


def class_named_by(config: LibraryDecoder) -> str:
    """The class that a decoder's configuration names.

    Raises:
        BadInput: if it is none of `AUTOENCODERS`.
    """
    return class_named(config.config, AUTOENCODERS, "decoder: ")


def facts_of(config: LibraryDecoder) -> Facts:
    """What a decoder's configuration says.

    Raises:
        BadInput: if its class is not known, or a value is missing or of the wrong kind; one message for all problems.
    """
    kind = class_named_by(config)
    facts, problems = read_as(AUTOENCODERS[kind], dict(config.config))
    if facts is None:
        raise BadInput(
            in_one_line(f"decoder: config.json of {kind}", problems, "; save it anew with diffusers' save_pretrained")
        )
    mean, std = facts.statistics
    for name, values in (("mean", mean), ("deviation", std)):
        if len(values) not in (1, facts.latent) or not all(map(math.isfinite, values)):
            raise BadInput(
                f"decoder: config.json of {kind}: {len(values)} values of the latent's {name}, expected {facts.latent}"
            )
    return facts


def latent_statistics(config: LibraryDecoder) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the latent per channel: a decoder reads latent * deviation + mean.

    Raises:
        BadInput: as `facts_of`.
    """
    facts = facts_of(config)
    mean, std = (values * facts.latent if len(values) == 1 else values for values in facts.statistics)
    return mean, std


def library_decoder_problems(config: LibraryDecoder, student: Any) -> list[str]:
    """Why a decoder does not go with a student, one line each; empty if it does."""
    try:
        facts = facts_of(config)
    except BadInput as error:
        return [str(error)]
    found = []
    if facts.latent != student.latent_channels:
        found.append(f"decoder: takes latents of {facts.latent} channels, the student's have {student.latent_channels}")
    if facts.factor != student.latent_factor:
        found.append(f"decoder: enlarges {facts.factor}x, the student's latent_factor is {student.latent_factor}")
    return found
