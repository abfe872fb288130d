"""Tokenizers of transformers, of any format, as a tokenizer.json that gives the same ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.library_text import tokenizer_place
from snapgen_deploy.models.config import PROMPT_PLACE, LibraryTextEncoder, PromptReading
from snapgen_deploy.models.library_text import settings_of
from snapgen_deploy.models.library_tokenizer import asked_of_library, read_tokenizer
from snapgen_deploy.models.tokenizer import WordTokenizer
from snapgen_deploy.system.documents import refuse
from snapgen_deploy.system.lfs import refuse_pointer
from snapgen_deploy.system.typed import read_as

Side = Literal["right", "left"]

FILES = (
    "tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
LEAST_SHARE = 0.5  # of the embeddings that the tokenizer has ids for
CHAT = "chat"  # in place of a template: the tokenizer's own


@dataclass(frozen=True)
class AskedTokenizer:
    """What is asked of a tokenizer besides its files."""

    template: str = PROMPT_PLACE  # or `CHAT`
    pad: int | None = None  # id; None: the tokenizer's own
    padding: Side | None = None  # None: the tokenizer's own
    padding_seen: bool = False


@dataclass(frozen=True)
class FolderTokenizer:
    """A tokenizer that was found."""

    text: str  # of a tokenizer.json
    reading: PromptReading
    padding: Side
    files: tuple[Path, ...]


def folder_tokenizer(folder: Path, config: LibraryTextEncoder, wanted: AskedTokenizer) -> FolderTokenizer:
    """The tokenizer of a text encoder's folder, read by the library.

    Raises:
        BadInput: if there is none, the library cannot read it, or it is not the encoder's.
    """
    place = tokenizer_place(folder)
    for name in FILES:
        refuse_pointer(place / name)
    found = read_tokenizer(place)
    side: Side = wanted.padding or found.padding_side
    number = found.pad_token_id if wanted.pad is None else wanted.pad
    if number is None:
        raise BadInput(f"tokenizer {place}: has no padding token; say which id pads, `pad = ...` in a .toml file")
    if problems := _not_the_encoders(found, settings_of(config), number, told=wanted.pad is not None):
        raise BadInput(f"tokenizer {place}: {'; '.join(problems)}; give the tokenizer that the encoder was trained with")
    if side == "left" and config.dropped:
        raise BadInput(f"tokenizer {place}: pads on the left, so that no first tokens can be dropped; set padding to right")
    chat = wanted.template == CHAT
    template = _chat(place, found) if chat else wanted.template
    reading, problem = read_as(
        PromptReading,
        {"template": template, "special_tokens": not chat, "unknown": "kept", "padding_seen": wanted.padding_seen},
    )
    refuse(f"tokenizer {place}", problem)
    assert reading is not None
    backend = found.backend_tokenizer
    backend.no_truncation()
    backend.enable_padding(pad_id=number, pad_token=found.convert_ids_to_tokens(number) or "", direction=side)
    text = json.dumps(json.loads(backend.to_str()), sort_keys=True)
    _check(place, found, text, reading, config.length)
    return FolderTokenizer(text, reading, side, tuple(f for n in FILES if (f := place / n).is_file()))


def _chat(place: Path, tokenizer: Any) -> str:
    """The tokenizer's chat template around a user's message."""
    messages = [{"role": "user", "content": PROMPT_PLACE}]
    text = asked_of_library(
        lambda: str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)),
        f"tokenizer {place}: its chat template cannot be used; write a template with {PROMPT_PLACE}",
    )
    if (count := text.count(PROMPT_PLACE)) != 1:
        head = f"tokenizer {place}: its chat template has the prompt {count} times"
        raise BadInput(f"{head}; write a template with {PROMPT_PLACE}")
    return text


def _not_the_encoders(tokenizer: Any, settings: Any, pad: int, *, told: bool) -> list[str]:
    """Why a tokenizer is not that of a text encoder."""
    rows, vocab = max(tokenizer.get_vocab().values()) + 1, settings.vocab_size
    if rows > vocab:
        return [f"has token ids up to {rows - 1}, the encoder has {vocab} embeddings"]
    if rows < LEAST_SHARE * vocab:
        return [f"has {rows} token ids, the encoder {vocab} embeddings"]
    if pad >= vocab:
        return [f"pads with id {pad}, the encoder has {vocab} embeddings"]
    clip, ends = settings.model_type == "clip_text_model", _ids(settings.eos_token_id)
    found = []
    # configurations of CLIP have another padding than their tokenizers, and before transformers 4.31 another end
    if ends and tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends and not (clip and ends == [2]):
        found.append(f"ends texts with id {tokenizer.eos_token_id}, the encoder's configuration with {ends[0]}")
    if settings.pad_token_id is not None and pad != settings.pad_token_id and not (told or clip):
        found.append(f"pads with id {pad}, the encoder's configuration with {settings.pad_token_id}")
    return found


def _ids(value: int | Sequence[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def _check(place: Path, tokenizer: Any, text: str, reading: PromptReading, length: int) -> None:
    """Refuse a template that leaves no room for a prompt, and a tokenizer.json that reads otherwise than the library."""
    ours = WordTokenizer(text, replace(reading, padding_seen=False))
    for prompt in ("a", "Two GREEN circles,  über 3 rings!"):
        theirs = tokenizer(reading.filled(prompt), add_special_tokens=reading.special_tokens)["input_ids"]
        if len(theirs) > length:
            if prompt == "a":
                raise BadInput(
                    f"tokenizer {place}: the template alone has {len(theirs) - 1} tokens, the encoder takes {length}"
                )
            continue
        found, mask = ours.encode(prompt, length)
        if [n for n, seen in zip(found, mask, strict=True) if seen][: len(theirs)] != theirs:
            raise BadInput(f"tokenizer {place}: as a tokenizer.json it reads {prompt!r} otherwise than in transformers")
