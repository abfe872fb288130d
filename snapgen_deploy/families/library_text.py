"""Text encoders of transformers as components."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn

from snapgen_deploy.families.component import MASK, TOKENS, ComponentSpec, Drawing, Port, Ports, Spelling, TextInput
from snapgen_deploy.families.library_text_variants import library_text_variants
from snapgen_deploy.families.names import TEXT_ENCODER, TOKENIZER, numbered, tokenizer_file
from snapgen_deploy.models.config import LibraryTextEncoder
from snapgen_deploy.models.library_text import LibraryText, settings_of
from snapgen_deploy.sparse import rewrite_library_text


def library_text_encoder(config: LibraryTextEncoder, index: int) -> ComponentSpec:
    """The component of a text encoder of transformers.

    Raises:
        BadInput: if its class is not one of those that can be exported.
    """
    settings, name = settings_of(config), numbered(TEXT_ENCODER, index)
    text = TextInput(
        stream=config.stream, length=config.length, vocab=settings.vocab_size, key=numbered(TOKENIZER, index),
        file=tokenizer_file(name), arrays="" if index == 0 else f"{name}.", dropped=config.dropped, reading=config.reading,
    )  # fmt: skip
    return ComponentSpec(
        name=name,
        part="encode",
        output=config.stream,
        build=lambda width: LibraryText(config),
        layers=settings.num_hidden_layers,
        ports=partial(_ports, config, settings.hidden_size, text),
        apply=_apply,
        rewrite=_rewrite,
        folder=name,
        hyperparameters=lambda width: settings.to_diff_dict(),
        text=text,
        variants=library_text_variants,
        has_constants=True,  # rotary frequencies and the like
        sized=False,
        in_delegate=False,  # the lookup of the embeddings may stay outside
    )


def _ports(config: LibraryTextEncoder, width: int, text: TextInput, drawing: Drawing) -> Ports:
    tokens = Port(TOKENS, (1, config.length), "int32", f"token ids from {text.file}, padded on the {config.padding}")
    mask = Port(MASK, (1, config.length), "float32", "1 where there is a token, 0 at padding")
    dropped = f", without the first {config.dropped}" if config.dropped else ""
    out = Port(config.stream, (1, config.length - config.dropped, width), "float32", f"token embeddings{dropped}")
    return Ports((tokens, mask), (out,), "prompt tokens to embeddings")


def _apply(network: nn.Module, x: Mapping[str, Tensor]) -> Tensor:
    embeddings: Tensor = network(x[TOKENS], x[MASK])
    return embeddings


def _rewrite(network: nn.Module, latent: tuple[int, int], how: Spelling) -> nn.Module:
    assert isinstance(network, LibraryText)
    return rewrite_library_text(network, layout=how.layout, ops=how.ops, form=how.text_form)
