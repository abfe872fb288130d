"""Text encoders of transformers as components."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.component import (
    MASK,
    TOKENS,
    ComponentSpec,
    Drawing,
    Oracle,
    OracleTask,
    Port,
    Ports,
    Spelling,
    TextInput,
    encoded,
)
from snapgen_deploy.families.library_text_variants import library_text_variants
from snapgen_deploy.families.names import TEXT_ENCODER, TOKENIZER, numbered, tokenizer_file, tokenizer_name
from snapgen_deploy.models.config import LibraryTextEncoder, TextStream
from snapgen_deploy.models.library_text import LibraryText, library_encoder, pooled_width, settings_of
from snapgen_deploy.models.library_tokenizer import VOCABULARIES, read_tokenizer
from snapgen_deploy.sparse import rewrite_library_text

# Read by the library itself where a bundle is made, to hold the exported files to what it computes: short and long.
ORACLE_PROMPTS = (
    "a red ring",
    "An oil painting of a small cat, asleep on a blue chair",
    "two green circles, one yellow star and the number 7",
)


def library_text_encoder(config: LibraryTextEncoder, index: int) -> ComponentSpec:
    """The component of a text encoder of transformers.

    Raises:
        BadInput: if its class is not one of those that can be exported.
    """
    settings, name = settings_of(config), numbered(TEXT_ENCODER, index)
    pooled = "" if config.pooled == "no" else _pooled_name(config)
    text = TextInput(
        stream=config.stream, length=config.length, vocab=settings.vocab_size, key=numbered(TOKENIZER, index),
        file=tokenizer_file(name), arrays="" if index == 0 else f"{name}.", dropped=config.dropped, reading=config.reading,
    )  # fmt: skip
    return ComponentSpec(
        name=name,
        part="encode",
        output=config.stream,
        pooled=pooled,
        build=lambda width: LibraryText(config),
        layers=settings.num_hidden_layers,
        ports=partial(_ports, config, settings.hidden_size, text),
        apply=encoded,
        rewrite=_rewrite,
        folder=name,
        hyperparameters=lambda width: settings.to_diff_dict(),
        text=text,
        variants=library_text_variants,
        oracle=Oracle("transformers", partial(_recorded, config)),
        has_constants=True,  # rotary frequencies and the like
        sized=False,
        in_delegate=False,  # the lookup of the embeddings may stay outside
        by_tensor=True,  # projections and the table come through as they are
    )


def tokenizer_place(folder: Path) -> Path:
    """Where a text encoder's tokenizer lies: in its folder, or in the one that diffusers has beside it.

    Raises:
        BadInput: if there is none.
    """
    own = folder.absolute()
    beside = own.parent / tokenizer_name(own.name)
    for place in (folder, beside):
        if any((place / name).is_file() for name in VOCABULARIES):
            return place
    raise BadInput(f"text encoder {folder}: has no tokenizer: expected one of {', '.join(VOCABULARIES)} there or in {beside}")


def _recorded(config: LibraryTextEncoder, task: OracleTask) -> dict[str, Tensor]:
    """What the library's own class computes in fp32 of a few prompts, and of seeded tokens where there is no tokenizer."""
    encode = library_encoder(config, task.folder, task.read, task.adapted)
    if task.folder is None:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, settings_of(config).vocab_size, (2, config.length), generator=generator)
        mask = torch.ones(2, config.length)
        mask[1, config.length // 2 :] = 0
        mask = mask.flip(1) if config.padding == "left" else mask
    else:
        tokens, mask = _read_prompts(config, read_tokenizer(tokenizer_place(task.folder)))
    rows = [encode(tokens[i : i + 1], mask[i : i + 1]) for i in range(len(tokens))]
    outputs = zip(*((row,) if isinstance(row, Tensor) else row for row in rows), strict=True)
    names = (config.stream, _pooled_name(config))
    return {TOKENS: tokens, MASK: mask} | {n: torch.cat(found) for n, found in zip(names, outputs, strict=False)}


def _pooled_name(config: LibraryTextEncoder) -> str:
    return TextStream(config.stream, 1, 1).pooled_name


def _read_prompts(config: LibraryTextEncoder, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Tokens and mask (N, L) of the prompts, as the library's tokenizer reads them."""
    reading, pad = config.reading, tokenizer.pad_token_id or 0
    tokens, masks = [], []
    for prompt in ORACLE_PROMPTS:
        read = tokenizer(reading.filled(prompt), add_special_tokens=reading.special_tokens)["input_ids"][: config.length]
        rest, seen = config.length - len(read), float(reading.padding_seen)
        before = rest if config.padding == "left" else 0
        tokens.append([pad] * before + read + [pad] * (rest - before))
        masks.append([seen] * before + [1.0] * len(read) + [seen] * (rest - before))
    return torch.tensor(tokens), torch.tensor(masks)


def _ports(config: LibraryTextEncoder, width: int, text: TextInput, drawing: Drawing) -> Ports:
    tokens = Port(TOKENS, (1, config.length), "int32", f"token ids from {text.file}, padded on the {config.padding}")
    mask = Port(MASK, (1, config.length), "float32", "1 where there is a token, 0 at padding")
    dropped = f", without the first {config.dropped}" if config.dropped else ""
    out = [Port(config.stream, (1, config.length - config.dropped, width), "float32", f"token embeddings{dropped}")]
    if pooled := pooled_width(config):
        out.append(Port(_pooled_name(config), (1, pooled), "float32", "a vector of the whole text"))
    return Ports((tokens, mask), tuple(out), "prompt tokens to embeddings")


def _rewrite(network: nn.Module, latent: tuple[int, int], how: Spelling) -> nn.Module:
    assert isinstance(network, LibraryText)
    return rewrite_library_text(network, layout=how.layout, ops=how.ops, form=how.text_form)
