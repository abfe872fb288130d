"""ModelConfig <-> JSON. Reading trusts nothing: every problem of the document is collected and reported in one BadInput."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import types
import typing
from typing import Any

from torch import nn

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.config import DecoderConfig, DiTConfig, ModelConfig, TextEncoderConfig

# Bounds on what a document may ask for, so that a hostile one cannot make us build millions of modules. Both are far
# above any published model of this family (28 blocks, 262144 words).
LARGEST_SIZE = 1 << 20
LARGEST_DEPTH = 512
_DEPTHS = frozenset({"depths", "blocks", "layers"})  # fields whose values count modules
_ZERO_ALLOWED = frozenset({"radius"})
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")  # of widths and streams: they become parts of tensor and file names
_CHECKPOINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # of checkpoints: the bundle's folder is called by it
# Ports of the exported networks, and arrays of test vectors that lie beside those of streams.
_TAKEN = frozenset(
    {"latent", "time_features", "velocity", "tokens", "mask", "picture", "latents", "velocities", "drawn", "noise"}
)
MOST_STEPS = 1000
LEAST_SHIFT = 1e-3  # beyond it and its inverse, steps of the schedule fall together

_MISSING = object()


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """The document that a checkpoint carries under `snapgen_config`: every field, in its order."""
    return dataclasses.asdict(config)


def config_to_json(config: ModelConfig) -> str:
    """`config_to_dict` as text."""
    return json.dumps(config_to_dict(config), allow_nan=False)


def config_from_json(text: str, source: str = "snapgen_config") -> ModelConfig:
    """Read what `config_to_json` wrote; `source` names it in messages. Raises one BadInput listing all problems."""
    try:
        data = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{source}: not JSON ({error}); expected the configuration as a JSON object") from None
    return config_from_dict(data, source)


class DuplicateName(ValueError):
    """A JSON object that holds one key twice: readers would disagree on which is meant."""


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON document; DuplicateName for a key that stands there twice: the last would count in silence."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise DuplicateName(f"{key[:80]!r} stands there twice")
        found[key] = value
    return found


def config_from_dict(data: object, source: str = "snapgen_config") -> ModelConfig:
    """As `config_from_json`, from the decoded document."""
    problems: list[str] = []
    config = _value(ModelConfig, data, "", problems)
    if not problems:
        assert isinstance(config, ModelConfig)
        problems = semantic_problems(config)
    if problems:
        line = " ".join("; ".join(problems).split())  # a hostile key may hold line breaks
        raise BadInput(f"{source}: {line}")
    return typing.cast(ModelConfig, config)


def semantic_problems(config: ModelConfig) -> list[str]:
    """What makes well-typed components inadmissible by themselves or together, one line each; empty when sound."""
    found = _size_problems(config, "")
    if found:
        return found  # the checks below divide by these sizes
    if not _CHECKPOINT.fullmatch(config.name):
        found.append(f"name: got {config.name[:80]!r}, expected letters, digits, '.', '_' and '-', from a letter or digit on")
    if config.steps > MOST_STEPS:
        found.append(f"steps: got {config.steps}, expected 1 to {MOST_STEPS}")
    if not LEAST_SHIFT <= config.shift <= 1 / LEAST_SHIFT:
        found.append(f"shift: got {config.shift:g}, expected {LEAST_SHIFT:g} to {1 / LEAST_SHIFT:g}")
    found += [f"prompts[{i}]: is no text (a lone surrogate)" for i, p in enumerate(config.prompts) if not _is_text(p)]
    found += [f"prompts[{i}]: is blank" for i, prompt in enumerate(config.prompts) if not prompt.strip()]
    found += [f"student.{line}" for line in config.student.problems()]
    found += _name_problems(config.student)
    if config.decoder is not None:
        found += _decoder_problems(config.decoder, config.student)
    if config.text_encoder is not None:
        found += _text_problems(config.text_encoder, config.student)
    return found


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _size_problems(value: object, where: str) -> list[str]:
    """Integers and ratios must be positive and bounded, wherever they stand."""
    name = where.rsplit(".", 1)[-1].split("[")[0]
    if dataclasses.is_dataclass(value):
        fields = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return [line for key, item in fields for line in _size_problems(item, _join(where, key))]
    if isinstance(value, tuple):
        return [line for i, item in enumerate(value) for line in _size_problems(item, f"{where}[{i}]")]
    if isinstance(value, dict):
        return [line for key, item in value.items() for line in _size_problems(item, f"{where}[{key}]")]
    if isinstance(value, int) and not isinstance(value, bool):
        least = 0 if name in _ZERO_ALLOWED or where.startswith("decoder.blocks") else 1
        most = LARGEST_DEPTH if name in _DEPTHS and where != "student.blocks" else LARGEST_SIZE
        return [] if least <= value <= most else [f"{where}: got {value}, expected {least} to {most}"]
    if isinstance(value, float):
        if name == "latent_mean":
            return [] if math.isfinite(value) else [f"{where}: got {value}, expected a finite number"]
        return [] if value > 0 and math.isfinite(value) else [f"{where}: got {value}, expected a finite number above 0"]
    return []


def _name_problems(student: DiTConfig) -> list[str]:
    found = [] if student.widths else ["student.widths: at least one width is needed"]
    streams = [s.name for s in student.text_streams]
    for kind, names in (("widths", list(student.widths)), ("text_streams", streams)):
        found += [
            f"student.{kind}: name {n!r} must be letters, digits and '_', from a letter on"
            for n in names
            if not _NAME.fullmatch(n)
        ]
    found += [f"student.text_streams: name {n!r} is taken" for n in streams if n in _TAKEN or hasattr(nn.ModuleDict(), n)]
    found += [
        f"student.text_streams: name {n!r} is that of another one's mask"
        for n in streams
        if n.removesuffix("_mask") in streams and n.endswith("_mask")
    ]
    found += [
        f"student.text_streams: {n!r} stands there {streams.count(n)} times" for n in set(streams) if streams.count(n) > 1
    ]
    return found


def _decoder_problems(decoder: DecoderConfig, student: DiTConfig) -> list[str]:
    found = []
    if not decoder.channels or len(decoder.channels) != len(decoder.blocks):
        found.append(
            f"decoder: {len(decoder.channels)} channels and {len(decoder.blocks)} blocks; expected one of each a level"
        )
    if decoder.latent_channels != student.latent_channels:
        found.append(f"decoder.latent_channels: got {decoder.latent_channels}, the student has {student.latent_channels}")
    if decoder.channels and decoder.factor != student.latent_factor:
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


def _text_problems(text: TextEncoderConfig, student: DiTConfig) -> list[str]:
    found = []
    if text.width % text.heads:
        found.append(f"text_encoder.heads: {text.heads} does not divide width {text.width}")
    stream = next((s for s in student.text_streams if s.name == text.stream), None)
    if stream is None:
        names = ", ".join(s.name for s in student.text_streams)
        found.append(f"text_encoder.stream: got {text.stream!r}, the student's streams are {names}")
    elif (stream.dim, stream.length) != (text.width, text.length):
        found.append(
            f"text_encoder: gives {text.length} x {text.width}, stream {stream.name} takes {stream.length} x {stream.dim}"
        )
    return found


def _value(kind: Any, data: object, where: str, problems: list[str]) -> object:
    """`data` as the type `kind`; a mismatch is noted in `problems`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):  # X | None, the only unions in the configuration
        return None if data is None else _value(arguments[0], data, where, problems)
    if dataclasses.is_dataclass(kind):
        return _object(kind, data, where, problems)
    if origin is typing.Literal:
        return data if data in arguments else _wrong(" or ".join(map(repr, arguments)), data, where, problems)
    if origin is tuple:
        return _sequence(arguments, data, where, problems)
    if origin is dict:
        if not isinstance(data, dict):
            return _wrong("an object", data, where, problems)
        return {key: _value(arguments[1], item, f"{where}[{key}]", problems) for key, item in data.items()}
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data) if abs(data) < 1 << 53 else _wrong("a number", data, where, problems)
    if isinstance(data, kind) and (kind is bool or not isinstance(data, bool)):
        return data
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
    return _wrong(names[kind], data, where, problems)


def _sequence(arguments: tuple[Any, ...], data: object, where: str, problems: list[str]) -> object:
    if not isinstance(data, list | tuple):
        return _wrong("a list", data, where, problems)
    if arguments[-1] is not Ellipsis and len(data) != len(arguments):
        return _wrong(f"a list of {len(arguments)}", data, where, problems)
    kinds = [arguments[0]] * len(data) if arguments[-1] is Ellipsis else list(arguments)
    return tuple(_value(k, item, f"{where}[{i}]", problems) for i, (k, item) in enumerate(zip(kinds, data, strict=True)))


def _object(kind: Any, data: object, where: str, problems: list[str]) -> object:
    """A dataclass from an object that has exactly its fields."""
    if not isinstance(data, dict):
        return _wrong("an object", data, where, problems)
    hints = typing.get_type_hints(kind)
    problems += [f"unknown key {_join(where, str(key))}" for key in data if key not in hints]
    found: dict[str, object] = {}
    for name, hint in hints.items():
        item = data.get(name, _MISSING)
        if item is _MISSING:
            problems.append(f"missing key {_join(where, name)}")
        else:
            found[name] = _value(hint, item, _join(where, name), problems)
    return kind(**found) if len(found) == len(hints) else None


def _wrong(expected: str, data: object, where: str, problems: list[str]) -> object:
    """Note the mismatch; None stands for the value that there is not."""
    shown = json.dumps(data, default=str)
    problems.append(f"{where or 'document'}: got {shown[:40]}{'...' if len(shown) > 40 else ''}, expected {expected}")
    return None


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
