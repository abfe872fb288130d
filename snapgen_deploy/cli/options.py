"""Options that several commands have, declared once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snapgen_deploy.errors import BadInput

if TYPE_CHECKING:
    from snapgen_deploy.checkpoint import CheckpointPlace

YOUR_MODEL = "Your model"  # panel of --help
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tracebacks of errors, and what libraries print.")]
KeyMapFile = Annotated[
    Path | None,
    typer.Option(help="File that renames the tensors of a foreign checkpoint.", metavar="FILE", rich_help_panel=YOUR_MODEL),
]
TextEncoders = Annotated[
    list[str] | None,
    typer.Option(
        help="STREAM=FOLDER, repeatable: the text encoder of a text stream, as transformers saves it.",
        metavar="NAME=PATH",
        rich_help_panel=YOUR_MODEL,
    ),
]
WithoutTextEncoder = Annotated[
    list[str] | None,
    typer.Option(help="Text stream that stays empty, repeatable.", metavar="NAME", rich_help_panel=YOUR_MODEL),
]
DecoderFolder = Annotated[
    Path | None,
    typer.Option(
        help="Folder of an autoencoder, as diffusers saves it; its decoder is taken.",
        metavar="PATH",
        rich_help_panel=YOUR_MODEL,
    ),
]

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Configuration (JSON or TOML) of a checkpoint that has none.",
        metavar="FILE",
        rich_help_panel=YOUR_MODEL,
    ),
]
Prefix = Annotated[
    str | None,
    typer.Option(help="Take the tensors whose names begin so, without it.", metavar="NAME", rich_help_panel=YOUR_MODEL),
]
Ema = Annotated[
    bool, typer.Option("--ema", help="Take the averaged weights of a training checkpoint.", rich_help_panel=YOUR_MODEL)
]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        help="PATH or PATH:SCALE, repeatable: a LoRA (PEFT's folder or .safetensors) that is added to the weights.",
        metavar="PATH",
        rich_help_panel=YOUR_MODEL,
    ),
]


def place_of(
    checkpoint: Path | None,
    *,
    key_map: Path | None = None,
    text_encoder: Sequence[str] | None = None,
    without: Sequence[str] | None = None,
    decoder: Path | None = None,
    config: Path | None = None,
    prefix: str | None = None,
    ema: bool = False,
    lora: Sequence[str] | None = None,
    license: str | None = None,
) -> CheckpointPlace:
    """Where a command reads its model from.

    Raises:
        BadInput: if a text encoder is not given as NAME=PATH, a LoRA not as PATH or PATH:SCALE, or both --prefix and --ema.
    """
    from snapgen_deploy.checkpoint import CheckpointPlace
    from snapgen_deploy.checkpoint.lora import parsed
    from snapgen_deploy.checkpoint.wrappers import Selection

    if prefix is not None and ema:
        raise BadInput("--prefix and --ema: expected one of them")

    folders = []
    for text in text_encoder or ():
        stream, given, path = text.partition("=")
        if not (stream and given and path):
            raise BadInput(f"--text-encoder: got '{text}', expected STREAM=FOLDER, such as clip=./clip-vit-large-patch14")
        folders.append((stream, Path(path)))
    return CheckpointPlace(
        checkpoint,
        key_map,
        tuple(folders),
        tuple(without or ()),
        decoder,
        config,
        Selection(prefix, ema),
        tuple(parsed(text) for text in lora or ()),
        license,
    )
