"""Text encoders as components, each with a tokenizer of its own."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

from torch import nn

from snapgen_deploy.families.component import (
    MASK,
    TOKENS,
    ComponentSpec,
    Drawing,
    Initial,
    Port,
    Ports,
    Shape,
    Spelling,
    TextInput,
    encoded,
    initial,
)
from snapgen_deploy.families.library_text import library_text_encoder
from snapgen_deploy.families.names import TEXT_ENCODER, TOKENIZER, numbered, tokenizer_file
from snapgen_deploy.families.text_variants import text_variants
from snapgen_deploy.models.config import AnyTextEncoder, LibraryTextEncoder, ModelConfig, TextEncoderConfig
from snapgen_deploy.models.text_encoder import TextEncoder
from snapgen_deploy.sparse import rewrite_text_encoder


def text_encoders(config: ModelConfig) -> tuple[ComponentSpec, ...]:
    """One component for each text encoder of a configuration."""
    others = [(1 + i, encoder) for i, encoder in enumerate(config.other_text_encoders)]
    first = [] if config.text_encoder is None else [(0, config.text_encoder)]
    return tuple(_spec(encoder, index) for index, encoder in (*first, *others))


def _spec(config: AnyTextEncoder, index: int) -> ComponentSpec:
    return library_text_encoder(config, index) if isinstance(config, LibraryTextEncoder) else _own(config, index)


def _own(config: TextEncoderConfig, index: int) -> ComponentSpec:
    name = numbered(TEXT_ENCODER, index)
    arrays = "" if index == 0 else f"{name}."
    key, file = numbered(TOKENIZER, index), tokenizer_file(name)
    text = TextInput(config.stream, config.length, config.vocab, key, file, arrays)
    return ComponentSpec(
        name=name,
        part="encode",
        output=config.stream,
        build=lambda width: TextEncoder(config),
        layers=config.layers,
        ports=partial(_ports, config, text),
        apply=encoded,
        rewrite=_rewrite,
        folder=name,
        hyperparameters=lambda width: _hyperparameters(config),
        text=text,
        initial=_initial,
        variants=text_variants,
        sized=False,
        in_delegate=False,  # the lookup of the embeddings may stay outside
    )


def _ports(config: TextEncoderConfig, text: TextInput, drawing: Drawing) -> Ports:
    tokens = Port(TOKENS, (1, config.length), "int32", f"token ids from {text.file}, padded")
    mask = Port(MASK, (1, config.length), "float32", "1 where there is a token, 0 at padding")
    out = Port(config.stream, (1, config.length, config.width), "float32", "token embeddings")
    return Ports((tokens, mask), (out,), "prompt tokens to embeddings")


def _rewrite(network: nn.Module, latent: tuple[int, int], how: Spelling) -> nn.Module:
    assert isinstance(network, TextEncoder)
    return rewrite_text_encoder(network, layout=how.layout, batch=how.batch, ops=how.ops, form=how.text_form)


def _initial(name: str, shape: Shape) -> Initial:
    """Tables of tokens and positions as CLIP's."""
    return Initial(0.02) if name.startswith(("tokens", "positions")) else initial(name, shape)


def _hyperparameters(config: TextEncoderConfig) -> dict[str, object]:
    named = {"hidden_size": config.width, "num_attention_heads": config.heads, "num_hidden_layers": config.layers}
    return {**asdict(config), **named, "vocab_size": config.vocab}
