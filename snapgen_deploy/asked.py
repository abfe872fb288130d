"""What can be said of a model on a command line, declared once for every command that opens a checkpoint.

It imports nothing heavy, so that `--help` needs none of it; `CheckpointPlace.of` makes of it where a model is read from.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints


@dataclass(frozen=True)
class Said:
    """What --help says of an option."""

    help: str
    metavar: str | None = None


@dataclass(frozen=True)
class AskedModel:
    """The options, named as on the command line; those with a list may be given several times."""

    key_map: Annotated[Path | None, Said("File that renames the tensors of a foreign checkpoint.", "FILE")] = None
    text_encoder: Annotated[
        list[str] | None,
        Said("STREAM=FOLDER, repeatable: the text encoder of a text stream, as transformers saves it.", "NAME=PATH"),
    ] = None
    without_text_encoder: Annotated[list[str] | None, Said("Text stream that stays empty, repeatable.", "NAME")] = None
    decoder: Annotated[Path | None, Said("Folder of an autoencoder, as diffusers saves it; its decoder is taken.", "PATH")] = (
        None
    )
    config: Annotated[Path | None, Said("Configuration (JSON or TOML) of a checkpoint that has none.", "FILE")] = None
    family: Annotated[
        str | None, Said("Family of the student, such as diffusers. Default: what the checkpoint says.", "NAME")
    ] = None
    module: Annotated[
        str | None,
        Said("Class of the student in an installed package of yours, PACKAGE.MODULE:CLASS; with --config.", "NAME"),
    ] = None
    prefix: Annotated[str | None, Said("Take the tensors whose names begin so, without it.", "NAME")] = None
    ema: Annotated[bool, Said("Take the averaged weights of a training checkpoint.")] = False
    lora: Annotated[
        list[str] | None,
        Said("PATH or PATH:SCALE, repeatable: a LoRA (PEFT's folder or .safetensors) that is added to the weights.", "PATH"),
    ] = None
    license: Annotated[
        str | None, Said("The licence under which the bundle goes out. Default: what its parts state.", "TEXT")
    ] = None


@dataclass(frozen=True)
class AskedOption:
    """A field of `AskedModel`, for what reads a command line."""

    name: str
    kind: Any  # its type
    default: Any
    said: Said


def asked_options() -> list[AskedOption]:
    """All of them, in the order of --help."""
    kinds = get_type_hints(AskedModel, include_extras=True)
    read = {f.name: (*get_args(kinds[f.name]), f.default) for f in fields(AskedModel)}
    return [AskedOption(name, kind, default, said) for name, (kind, said, default) in read.items()]
