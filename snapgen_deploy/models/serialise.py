"""ModelConfig <-> JSON. Reading trusts nothing: all problems of the document are reported in one BadInput."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.autoencoders import library_decoder_problems
from snapgen_deploy.models.config import (
    FAMILY,
    MOST_OTHERS,
    AnyTextEncoder,
    DecoderConfig,
    LibraryDecoder,
    LibraryTextEncoder,
    ModelConfig,
    StudentConfig,
    TextEncoderConfig,
    TextStream,
)
from snapgen_deploy.models.library_text import pooled_width, settings_of
from snapgen_deploy.system.documents import parse_json, refuse, shown
from snapgen_deploy.system.typed import read_as

_OTHERS = "other_text_encoders"
# Names of ports of the exported networks, and of arrays that lie beside those of streams in test vectors.
_RESERVED = frozenset(
    {"latent", "time_features", "velocity", "tokens", "mask", "picture", "latents", "velocities", "drawn", "noise"}
)


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """The JSON object that a checkpoint carries under `snapgen_config`: every field, in its order.

    Fields that were added later are left out if they have their default, so that an older configuration is written as before.
    """
    return config.written()


def config_to_json(config: ModelConfig) -> str:
    """`config_to_dict` as text."""
    return json.dumps(config_to_dict(config), allow_nan=False)


def config_from_json(text: str, students: Mapping[str, type], source: str = "snapgen_config") -> ModelConfig:
    """Read what `config_to_json` wrote; `source` names it in messages, `students` has the dataclass of `student` by family.

    Raises:
        BadInput: if the text is not JSON or not a valid configuration; one message for all problems.
    """
    try:
        data = parse_json(text)
    except ValueError as error:
        raise BadInput(f"{source}: not JSON ({error}); expected the configuration as a JSON object") from None
    return config_from_dict(data, students, source)


def config_from_dict(data: object, students: Mapping[str, type], source: str = "snapgen_config") -> ModelConfig:
    """As `config_from_json`, from the decoded document.

    Raises:
        BadInput: if it is not a valid configuration; one message for all problems.
    """
    family = data.get("family", FAMILY) if isinstance(data, dict) else FAMILY
    if not isinstance(family, str) or family not in students:
        raise BadInput(f"{source}: family: got {shown(family)}, expected one of {', '.join(students)}")
    config, problems = read_as(ModelConfig, data)
    found: dict[str, Any] = {}
    for where, table, kind in _tables(data, students[family]) if isinstance(data, dict) else ():
        found[where], more = read_as(kind, table)
        problems = [*(f"{where}.{line}" for line in more), *problems]
    refuse(source, problems)
    assert config is not None
    others = tuple(found.pop(where) for where in [name for name in found if name.startswith(_OTHERS)])
    config = dataclasses.replace(config, **found, other_text_encoders=others)
    refuse(source, semantic_problems(config))
    return config


def _tables(data: dict[str, Any], student: type) -> Iterator[tuple[str, object, type]]:
    """The tables of a document that are one of several classes: path, value and class."""
    text = (TextEncoderConfig, LibraryTextEncoder)
    kinds = {"student": (student, student), "decoder": (DecoderConfig, LibraryDecoder), "text_encoder": text}
    tables = [(name, data.get(name), own) for name, own in kinds.items()]
    others = data.get(_OTHERS)
    if isinstance(others, list | tuple):
        tables += [(f"{_OTHERS}[{i}]", value, text) for i, value in enumerate(others[:MOST_OTHERS])]
    for where, value, (own, library) in tables:
        if isinstance(value, dict):
            yield where, value, library if "library" in value else own


def semantic_problems(config: ModelConfig) -> list[str]:
    """Why well-typed components are invalid by themselves or together, one line each; empty if they are valid."""
    found = [f"student.{line}" for line in config.student.problems()]
    found += _name_problems([s.name for s in config.student.text_streams])
    found += _other_arrays(config.student.text_streams)
    if isinstance(config.decoder, DecoderConfig):
        found += _decoder_problems(config.decoder, config.student)
    elif config.decoder is not None:
        found += library_decoder_problems(config.decoder, config.student)
    for where, encoder in _text_encoders(config):
        found += _text_problems(encoder, where, config.student)
    fed = [encoder.stream for encoder in config.text_encoders]
    streams = [s.name for s in config.student.text_streams]
    for name in config.absent_streams:
        if name in fed or name not in streams:
            expected = "a text stream of the student that no text encoder feeds"
            found.append(f"absent_streams: got {shown(name)}, expected {expected}")
    if config.negative_prompt and not config.guided:
        found.append("negative_prompt: got a text, expected none where guidance_scale is 1")
    twice = [name for name in dict.fromkeys(fed) if fed.count(name) > 1]
    return [*found, *(f"stream {name!r} is fed by {fed.count(name)} text encoders, expected one" for name in twice)]


def _text_encoders(config: ModelConfig) -> list[tuple[str, AnyTextEncoder]]:
    """Every text encoder, with its path in the document."""
    first = [] if config.text_encoder is None else [("text_encoder", config.text_encoder)]
    return [*first, *((f"{_OTHERS}[{i}]", encoder) for i, encoder in enumerate(config.other_text_encoders))]


def _name_problems(streams: list[str]) -> list[str]:
    found = [f"name {n!r} is reserved; choose another" for n in streams if n in _RESERVED or hasattr(nn.ModuleDict(), n)]
    found += [f"{n!r} occurs {streams.count(n)} times, expected once" for n in set(streams) if streams.count(n) > 1]
    return [f"student.text_streams: {line}" for line in found]


def _other_arrays(streams: Sequence[TextStream]) -> list[str]:
    """Names of streams that are those of another's mask or pooled vector."""
    names = [s.name for s in streams]
    taken = {name: name.rpartition("_")[2] for s in streams for name in s.shapes if name != s.name}
    found = [f"name {n!r} is the name of another stream's {taken[n]}; choose another" for n in names if n in taken]
    return [f"student.text_streams: {line}" for line in found]


def _decoder_problems(decoder: DecoderConfig, student: StudentConfig) -> list[str]:
    found = []
    if len(decoder.channels) != len(decoder.blocks):
        found.append(
            f"decoder: {len(decoder.channels)} channels and {len(decoder.blocks)} blocks; expected one of each per level"
        )
    if decoder.latent_channels != student.latent_channels:
        found.append(f"decoder.latent_channels: got {decoder.latent_channels}, the student has {student.latent_channels}")
    if decoder.factor != student.latent_factor:
        found.append(
            f"decoder: {len(decoder.channels)} levels enlarge {decoder.factor}x, latent_factor is {student.latent_factor}"
        )
    for blocks, (channels, following) in zip(decoder.blocks, itertools.pairwise(decoder.channels), strict=False):
        if not blocks and channels != following:  # a level's last block changes the channels
            found.append(f"decoder.blocks: got 0 where {channels} channels become {following}, expected 1 or more")
    for channels in decoder.channels:
        if channels * decoder.expand % decoder.groups:
            found.append(f"decoder.groups: {decoder.groups} does not divide {channels} channels x {decoder.expand}")
    for name, values in (("latent_mean", decoder.latent_mean), ("latent_std", decoder.latent_std)):
        if values and len(values) != decoder.latent_channels:
            found.append(f"decoder.{name}: got {len(values)} values, expected none or {decoder.latent_channels}")
    return found


def _text_problems(text: AnyTextEncoder, where: str, student: StudentConfig) -> list[str]:
    found, pooled = [], 0
    if isinstance(text, TextEncoderConfig):
        length, width = text.length, text.width
        if width % text.heads:
            found.append(f"{where}.heads: {text.heads} does not divide width {width}")
    else:
        try:
            length, width, pooled = text.length - text.dropped, settings_of(text).hidden_size, pooled_width(text)
        except BadInput as error:
            return [f"{where}: {error}"]
    stream = next((s for s in student.text_streams if s.name == text.stream), None)
    if stream is None:
        names = ", ".join(s.name for s in student.text_streams)
        found.append(f"{where}.stream: got {shown(text.stream)}, the student's streams are {names}")
    elif (stream.dim, stream.length) != (width, length):
        found.append(f"{where}: gives {length} x {width}, stream {stream.name} takes {stream.length} x {stream.dim}")
    elif stream.pooled != pooled:
        given = f"a pooled vector of {pooled} channels" if pooled else "no pooled vector"
        found.append(f"{where}: gives {given}, stream {stream.name} takes {stream.pooled or 'none'}")
    return found
