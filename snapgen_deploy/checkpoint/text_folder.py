"""Text encoders from folders of transformers, with what such a folder does not say.

The tokenizer (tokenizer.json, or vocab.json and merges.txt, or a sentencepiece model) lies in the folder, or in the folder
`tokenizer` beside it, as diffusers has it. A TOML file in place of the folder names one and says the rest:

    folder = "gemma-3-4b-it"  # relative to the file
    layer = -2                # hidden state; default -1, the library's last one, with the final norm
    template = "chat"         # the tokenizer's chat template, or a text with {} for the prompt
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictBool

from snapgen_deploy.checkpoint.library import LibraryFolder, open_library_folder
from snapgen_deploy.checkpoint.stored import FileTensor, Stored
from snapgen_deploy.checkpoint.text_tokenizer import AskedTokenizer, folder_tokenizer
from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.config import LARGEST_DEPTH, LARGEST_INT, PROMPT_PLACE, Document, LibraryTextEncoder, TextStream
from snapgen_deploy.models.library_text import own_names, pooled_width, settings_of
from snapgen_deploy.system.documents import in_one_line, parse_toml, refuse, shown
from snapgen_deploy.system.typed import read_as

# Tensors of other parts of a larger model, and constants that the library computes itself.
_OTHER_PARTS = ("lm_head.", "text_projection.", "decoder.", "embed_tokens.")
_CONSTANTS = (".position_ids", ".inv_freq")


@dataclass(frozen=True)
class FolderSettings(Document):
    """What a TOML file says of a folder; the meaning of most is that of the same field of `LibraryTextEncoder`."""

    LATER: ClassVar[frozenset[str]] = frozenset(
        {"layer", "normed", "dropped", "padding", "pad", "template", "padding_seen", "projected"}
    )

    folder: str
    layer: Annotated[int, Field(strict=True, ge=-LARGEST_DEPTH, le=LARGEST_DEPTH)] = -1
    normed: StrictBool = False
    dropped: Annotated[int, Field(strict=True, ge=0, le=LARGEST_INT)] = 0
    padding: Literal["right", "left"] | None = None  # None: the tokenizer's
    pad: Annotated[int, Field(strict=True, ge=0, le=LARGEST_INT)] | None = None  # id; None: the tokenizer's
    template: str = PROMPT_PLACE
    padding_seen: StrictBool = False  # encoder and student take padding for tokens, as those of Stable Diffusion do
    projected: StrictBool | None = None  # the pooled vector, by text_projection; None: as the folder's class has it


@dataclass(frozen=True)
class TextFolder:
    """A text encoder that was found. No tensor was read."""

    folder: Path
    config: LibraryTextEncoder
    stored: Mapping[str, Stored]  # by the network's names
    tokenizer: str  # the text of a tokenizer.json
    files: tuple[Path, ...]  # all that decides what is in it


def open_text_folder(path: Path, stream: TextStream, usual: Mapping[str, Any] = MappingProxyType({})) -> TextFolder:
    """Find a text encoder for one of the student's streams in a folder, or where a TOML file says.

    `usual` has fields of such a file, for a folder without one.

    Raises:
        BadInput: if something is missing or damaged, the library does not take the configuration, or the tokenizer or the
            stream does not fit the encoder.
    """
    settings = _settings(path, usual)
    folder = open_library_folder(path if path.is_dir() else path.parent / settings.folder, f"text encoder {stream.name}")
    config = LibraryTextEncoder(
        "transformers", dict(folder.config), stream.length + settings.dropped, stream.name, layer=settings.layer,
        normed=settings.normed, dropped=settings.dropped, pooled=_pooled(settings, folder.config) if stream.pooled else "no",
    )  # fmt: skip
    try:
        library = settings_of(config)
    except BadInput as error:
        raise BadInput(f"text encoder {stream.name} {folder.path}: {error}") from None
    if library.hidden_size != stream.dim:
        got = f"gives {library.hidden_size} channels, the student's text stream takes {stream.dim}"
        raise BadInput(f"text encoder {stream.name} {folder.path}: {got}")
    if stream.pooled and (width := pooled_width(config)) != stream.pooled:
        got = f"gives a pooled vector of {width} channels ({config.pooled}), the student's text stream takes {stream.pooled}"
        raise BadInput(f"text encoder {stream.name} {folder.path}: {got}")
    wanted = AskedTokenizer(settings.template, settings.pad, settings.padding, settings.padding_seen)
    tokenizer = folder_tokenizer(folder.path, config, wanted)
    return TextFolder(
        folder=folder.path,
        config=replace(config, padding=tokenizer.padding, reading=tokenizer.reading),
        stored={ours: FileTensor(folder.source, theirs) for ours, theirs in _names(folder, config).items()},
        tokenizer=tokenizer.text,
        files=(*folder.files, *tokenizer.files, *((path,) if path.is_file() else ())),
    )


def _pooled(settings: FolderSettings, config: Mapping[str, Any]) -> Literal["plain", "projected"]:
    """Whether the pooled vector is projected: as the file says, else as the class that wrote the folder has it."""
    if settings.projected is not None:
        return "projected" if settings.projected else "plain"
    return "plain" if config.get("architectures") == ["CLIPTextModel"] else "projected"


def _settings(path: Path, usual: Mapping[str, Any]) -> FolderSettings:
    """What a TOML file says, or what is usual for a folder."""
    if path.suffix.lower() != ".toml" or not path.is_file():
        return FolderSettings(str(path), **usual)
    try:
        data = parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read as TOML ({error})") from None
    found, problems = read_as(FolderSettings, data)
    refuse(str(path), problems)
    assert found is not None
    return found


def _names(folder: LibraryFolder, config: LibraryTextEncoder) -> dict[str, str]:
    """The network's names -> the file's.

    Raises:
        BadInput: if the file has tensors, such as more layers, that the configuration has no place for.
    """
    found, left = own_names(config, folder.source.tensors)
    extra = [n for n, ours in left.items() if not ours.startswith(_OTHER_PARTS) and not ours.endswith(_CONSTANTS)]
    if extra:
        found_there = [f"{shown(name)} {list(folder.source.tensors[name].shape)}" for name in sorted(extra)]
        head = f"text encoder {config.stream} {folder.path}: {len(extra)} tensors that its config.json has no place for"
        raise BadInput(in_one_line(head, found_there))
    return found
