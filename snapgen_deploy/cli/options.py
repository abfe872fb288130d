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


def place_of(
    checkpoint: Path | None,
    key_map: Path | None,
    text_encoder: Sequence[str] | None,
    without: Sequence[str] | None,
    decoder: Path | None,
) -> CheckpointPlace:
    """Where a command reads its model from.

    Raises:
        BadInput: if a text encoder is not given as NAME=PATH.
    """
    from snapgen_deploy.checkpoint import CheckpointPlace

    folders = []
    for text in text_encoder or ():
        stream, given, path = text.partition("=")
        if not (stream and given and path):
            raise BadInput(f"--text-encoder: got '{text}', expected STREAM=FOLDER, such as clip=./clip-vit-large-patch14")
        folders.append((stream, Path(path)))
    return CheckpointPlace(checkpoint, key_map, tuple(folders), tuple(without or ()), decoder)
