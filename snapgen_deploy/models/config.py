"""The configuration of a checkpoint: its components, whatever family the student is of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal, Protocol, cast

from pydantic import AfterValidator, ConfigDict, Field, GetCoreSchemaHandler, StrictBool
from pydantic_core import CoreSchema, core_schema

from snapgen_deploy.system.typed import Number

PROMPT_PLACE = "{}"  # of the prompt in a template
FAMILY = "elastic-dit"  # of a configuration without the field: it was written before there were several families
# Bounds on what a document may ask for, so that a hostile one cannot make us build millions of modules. Both are far
# above any published model of this family (28 blocks, 262144 words).
LARGEST_INT = 1 << 20
LARGEST_DEPTH = 512
MOST_STEPS = 1000
MOST_WIDTHS = 16
MOST_STREAMS = 16
MOST_SIZES = 1024  # picture sizes that a model was trained at
MOST_OTHERS = 8  # text encoders beside the first
MOST_LEVELS = LARGEST_INT.bit_length()  # of a decoder: each doubles the picture
LEAST_SHIFT = 1e-3  # below it, or above its inverse, steps of the schedule coincide


def _name(pattern: str, expected: str) -> AfterValidator:
    """Checks a text against a regular expression; `expected` describes it in the message."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(expected)
        return value

    return AfterValidator(check)


PositiveInt = Annotated[int, Field(strict=True, ge=1, le=LARGEST_INT)]
Depth = Annotated[int, Field(strict=True, ge=1, le=LARGEST_DEPTH)]  # counts modules
Positive = Annotated[Number, Field(gt=0)]
# Names of widths and streams become parts of tensor and file names; the bundle's folder is named after the checkpoint.
Name = Annotated[str, _name(r"[A-Za-z][A-Za-z0-9_]{0,63}", "letters, digits and '_', beginning with a letter")]
Prompt = Annotated[str, Field(pattern=r"\S", description="a non-empty string")]  # a pattern also rejects lone surrogates
AnyText = Annotated[str, Field(pattern="", description="a text")]
GuidanceScale = Annotated[Number, Field(ge=0, description="a number of 0 or more")]
FolderName = Annotated[
    str, _name(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "letters, digits, '.', '_' and '-', beginning with a letter or digit")
]


class Document:
    """A part of the configuration: its JSON object has every field, also those with a default, and no other key."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    LATER: ClassVar[frozenset[str]] = frozenset()  # fields added later, which older documents lack
    UNWRITTEN: ClassVar[frozenset[str]] = frozenset()  # those of them that are not written where they have their default

    def written(self) -> dict[str, Any]:
        """Its JSON object: every field in its order, but so that an older configuration is written as before."""
        found = {f.name: (getattr(self, f.name), f.default) for f in fields(cast(Any, self))}
        return {name: _written(v) for name, (v, usual) in found.items() if name not in self.UNWRITTEN or v != usual}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema of the dataclass without its defaults: those are for code, a document must have every field."""
        schema = handler(source)
        inner: Any = handler.resolve_ref_schema(schema)
        for each in inner["schema"]["fields"]:
            if each["schema"]["type"] == "default" and each["name"] not in cls.LATER:
                each["schema"] = each["schema"]["schema"]
        return schema


def _written(value: Any) -> Any:
    if isinstance(value, Document):
        return value.written()
    if isinstance(value, Mapping):
        return {key: _written(item) for key, item in value.items()}
    return type(value)(map(_written, value)) if isinstance(value, tuple | list) else value


@dataclass(frozen=True)
class TextStream(Document):
    """One text encoder whose tokens the student attends to; streams are concatenated along tokens."""

    LATER: ClassVar[frozenset[str]] = frozenset({"pooled"})
    UNWRITTEN: ClassVar[frozenset[str]] = LATER

    name: Name
    dim: PositiveInt
    length: PositiveInt
    pooled: Annotated[int, Field(strict=True, ge=0, le=LARGEST_INT)] = 0  # channels of a vector of the whole text; 0: none

    @property
    def pooled_name(self) -> str:
        """Of the vector among the student's inputs."""
        return f"{self.name}_pooled"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What the student reads of it, by name: embeddings (L, dim), mask (L,), and a pooled vector where there is one."""
        found: dict[str, tuple[int, ...]] = {self.name: (self.length, self.dim), f"{self.name}_mask": (self.length,)}
        return found | ({self.pooled_name: (self.pooled,)} if self.pooled else {})


@dataclass(frozen=True)
class DecoderConfig(Document):
    """SnapGen's tiny decoder (arXiv 2412.09619): no attention, separable residual blocks."""

    latent_channels: PositiveInt = 16
    # Per level, from the latent up; not published.
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=MOST_LEVELS)] = (256, 128, 64, 32)
    blocks: tuple[Annotated[int, Field(strict=True, ge=0, le=LARGEST_DEPTH)], ...] = (4, 3, 3, 2)
    expand: PositiveInt = 2
    groups: PositiveInt = 8
    latent_mean: tuple[Number, ...] = ()  # per channel; () means zeros
    latent_std: tuple[Positive, ...] = ()  # per channel; () means ones

    @property
    def factor(self) -> int:
        """Pixels per latent cell along one axis."""
        return int(2 ** (len(self.channels) - 1))


@dataclass(frozen=True)
class TextEncoderConfig(Document):
    """A small bidirectional transformer over word or subword tokens."""

    vocab: PositiveInt = 49408  # CLIP's byte-pair vocabulary
    length: PositiveInt = 77
    width: PositiveInt = 512
    layers: Depth = 6
    heads: PositiveInt = 8
    stream: str = "text"  # which of the student's text streams it feeds


Settings = Annotated[dict[str, Any], Field(description="the object of a config.json")]  # not ours: its library checks it


def _template(value: str) -> str:
    if value.count(PROMPT_PLACE) != 1:
        raise ValueError(f"a text with one {PROMPT_PLACE} for the prompt")
    return value


@dataclass(frozen=True)
class PromptReading(Document):
    """How a prompt is put before a tokenizer reads it, and what of it the mask shows."""

    template: Annotated[str, AfterValidator(_template)] = PROMPT_PLACE  # around the prompt
    special_tokens: StrictBool = True  # those that the tokenizer puts around a text; False where the template has them
    unknown: Literal["refused", "kept"] = "refused"  # words that the tokenizer does not know become its unknown token, or not
    padding_seen: StrictBool = False  # the mask is 1 at padding, too

    def filled(self, prompt: str) -> str:
        """The prompt in its template.

        >>> PromptReading(template="draw {}!").filled("a ring")
        'draw a ring!'
        """
        return self.template.replace(PROMPT_PLACE, prompt, 1)


@dataclass(frozen=True)
class LibraryTextEncoder(Document):
    """A text encoder that is a class of transformers, by the configuration that the library wrote for it."""

    LATER: ClassVar[frozenset[str]] = frozenset({"layer", "normed", "dropped", "padding", "reading", "pooled"})
    UNWRITTEN: ClassVar[frozenset[str]] = frozenset({"pooled"})

    library: Literal["transformers"]
    config: Settings = field(hash=False)
    length: PositiveInt  # tokens, padding and those that are dropped included
    stream: str = "text"  # which of the student's text streams it feeds
    layer: Annotated[int, Field(strict=True, ge=-LARGEST_DEPTH, le=LARGEST_DEPTH)] = -1  # hidden state; -1: the last, normed
    normed: StrictBool = False  # the final norm is applied to another hidden state than the last
    dropped: Annotated[int, Field(strict=True, ge=0, le=LARGEST_INT)] = 0  # first tokens, of a template, the student sees not
    padding: Literal["right", "left"] = "right"
    reading: PromptReading = field(default_factory=PromptReading)
    # A second output: the last hidden state at the end of the text, as it is, or projected to the space of pictures.
    pooled: Literal["no", "plain", "projected"] = "no"


@dataclass(frozen=True)
class LibraryDecoder(Document):
    """The decoder half of an autoencoder that is a class of diffusers, by the configuration that the library wrote for it."""

    library: Literal["diffusers"]
    config: Settings = field(hash=False)


class StudentConfig(Protocol):
    """What the configuration of every student has, whatever its family; each family adds its own hyperparameters."""

    @property
    def latent_channels(self) -> int:
        """Channels of the latent."""

    @property
    def latent_factor(self) -> int:
        """Pixels per latent cell along one axis."""

    @property
    def text_streams(self) -> tuple[TextStream, ...]:
        """What the student attends to, in the order of its inputs."""

    @property
    def time_features(self) -> int:
        """Features of the noise level, see `schedule.time_features`."""

    @property
    def widths(self) -> Mapping[str, float]:
        """Sub-networks and their ratio to the full width; a single entry if the student is not elastic."""

    def problems(self) -> list[str]:
        """Why this configuration is invalid, one line each; empty if it is valid."""


class OfItsKind:
    """Marks a table that is read as one of several configuration classes, once it is known which; see `serialise`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.dict_schema()


AnyTextEncoder = TextEncoderConfig | LibraryTextEncoder
AnyDecoder = DecoderConfig | LibraryDecoder


@dataclass(frozen=True)
class ModelConfig(Document):
    """All components of a checkpoint; a component that the checkpoint lacks is None."""

    LATER: ClassVar[frozenset[str]] = frozenset(
        {"family", "other_text_encoders", "absent_streams", "trained_resolutions", "guidance_scale", "negative_prompt"}
    )
    UNWRITTEN: ClassVar[frozenset[str]] = LATER

    student: Annotated[StudentConfig, OfItsKind()]  # of its family
    decoder: Annotated[AnyDecoder, OfItsKind()] | None  # with a `library`, or our own
    text_encoder: Annotated[AnyTextEncoder, OfItsKind()] | None
    name: FolderName = "unnamed"
    trained: StrictBool = True
    shift: Annotated[Number, Field(ge=LEAST_SHIFT, le=1 / LEAST_SHIFT)] = 3.0  # of the flow-matching schedule, published
    steps: Annotated[int, Field(strict=True, ge=1, le=MOST_STEPS)] = 4
    resolution: tuple[PositiveInt, PositiveInt] = (1024, 1024)  # default picture height, width in pixels
    prompts: tuple[Prompt, ...] = ()  # shown and checked by every export
    family: str = FAMILY  # of the student, see `snapgen_deploy.families`
    # Beside `text_encoder`, each with a tokenizer of its own.
    other_text_encoders: Annotated[tuple[Annotated[AnyTextEncoder, OfItsKind()], ...], Field(max_length=MOST_OTHERS)] = ()
    absent_streams: tuple[Name, ...] = ()  # text streams that stay empty: embeddings and mask are zeros
    # Picture height, width in pixels; exports at others are warned of. None: not known.
    trained_resolutions: Annotated[tuple[tuple[PositiveInt, PositiveInt], ...], Field(max_length=MOST_SIZES)] = ()
    guidance_scale: GuidanceScale = 1.0  # of classifier-free guidance; 1: none
    negative_prompt: AnyText = ""  # what guidance leads away from

    @property
    def guided(self) -> bool:
        """Whether the student is called with classifier-free guidance, on the prompt and on the negative prompt together."""
        return self.guidance_scale != 1.0

    @property
    def text_encoders(self) -> tuple[AnyTextEncoder, ...]:
        """All text encoders, each of which feeds a text stream of its own."""
        return (*((self.text_encoder,) if self.text_encoder is not None else ()), *self.other_text_encoders)
