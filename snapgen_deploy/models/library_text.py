"""Text encoders that are classes of transformers: the reference is the library's own forward pass.

    tokens (1, L), mask (1, L) -> embeddings (1, L - dropped, D), and of some also a pooled vector (1, P)

Attention is the library's `eager` one: its `sdpa` leaves out Gemma 2's cap of the scores.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from snapgen_deploy.errors import BadInput, nearest
from snapgen_deploy.models.config import LARGEST_DEPTH, LARGEST_INT, LibraryTextEncoder
from snapgen_deploy.models.library_tokenizer import asked_of_library
from snapgen_deploy.models.on_disk import MOST_HELD, OnDisk, large_parameters, stand_in
from snapgen_deploy.models.unfilled import without_storage
from snapgen_deploy.system.documents import shown
from snapgen_deploy.system.quiet import reason_of

LAST = -1  # the library's `last_hidden_state`
LEGACY_END = 2  # eos_token_id of configurations before transformers 4.31: the highest id ends a text instead
PROJECTION = "text_projection.weight"  # of the pooled vector, in files and in the network
_POOLS = "clip_text_model"
KNOWN_ACTIVATIONS = (
    "quick_gelu",
    "gelu",
    "gelu_new",
    "gelu_pytorch_tanh",
    "silu",
    "swish",
    "relu",
)  # that targets are written for


@dataclass(frozen=True)
class TextClass:
    """A class of transformers that encodes text, and how its tensors are named in a folder that the library wrote."""

    package: str  # below transformers.models
    settings: str  # the class of its configuration
    network: str
    # Beginnings of names in files, the longest first, and what stands for them in the network's own names.
    names: Mapping[str, str]
    part: str = ""  # of the configuration of a larger model

    def settings_type(self) -> Any:
        """The class of its configuration."""
        return getattr(importlib.import_module(f"transformers.models.{self.package}"), self.settings)

    def network_type(self) -> Any:
        """The class of the network."""
        return getattr(importlib.import_module(f"transformers.models.{self.package}.modeling_{self.package}"), self.network)


_CLIP = {"text_model.": "text_model."}
_DECODER = {"model.": "", "": ""}
_GEMMA3 = {"language_model.model.": "", "model.language_model.": "", "language_model.": ""}
_QWEN3_VL = {"model.language_model.": "", "language_model.": ""}
# By `model_type` in the library's config.json.
TEXT_CLASSES: Mapping[str, TextClass] = MappingProxyType(
    {
        "clip_text_model": TextClass("clip", "CLIPTextConfig", "CLIPTextModel", _CLIP),
        "clip": TextClass("clip", "CLIPTextConfig", "CLIPTextModel", _CLIP, part="text_config"),
        "t5": TextClass("t5", "T5Config", "T5Stack", {"encoder.": "", "shared.": "embed_tokens."}),
        "gemma2": TextClass("gemma2", "Gemma2Config", "Gemma2Model", _DECODER),
        "gemma3_text": TextClass("gemma3", "Gemma3TextConfig", "Gemma3TextModel", _DECODER),
        "gemma3": TextClass("gemma3", "Gemma3TextConfig", "Gemma3TextModel", _GEMMA3, part="text_config"),
        "llama": TextClass("llama", "LlamaConfig", "LlamaModel", _DECODER),
        "qwen2": TextClass("qwen2", "Qwen2Config", "Qwen2Model", _DECODER),
        "qwen3": TextClass("qwen3", "Qwen3Config", "Qwen3Model", _DECODER),
        # Without pictures its three positions of a token are one, as in Qwen3.
        "qwen3_vl": TextClass("qwen3_vl", "Qwen3VLTextConfig", "Qwen3VLTextModel", _QWEN3_VL, part="text_config"),
    }
)


def class_of(config: LibraryTextEncoder) -> TextClass:
    """The class that a configuration names.

    Raises:
        BadInput: if it names none that is known.
    """
    kind = config.config.get("model_type")
    if kind not in TEXT_CLASSES:
        near = nearest(kind, TEXT_CLASSES) if isinstance(kind, str) else ""
        raise BadInput(f"model_type: got {shown(kind)}, expected one of {', '.join(TEXT_CLASSES)}{near}")
    return TEXT_CLASSES[str(kind)]


def settings_of(config: LibraryTextEncoder) -> Any:
    """The library's configuration of the network.

    Raises:
        BadInput: if the library does not take it, or nothing here is written for it.
    """
    kind = class_of(config)
    given = config.config.get(kind.part) if kind.part else config.config
    if not isinstance(given, dict):
        raise BadInput(f"{kind.part}: got {shown(given)}, expected an object")
    try:
        settings = kind.settings_type()(**given)
    except Exception as error:  # the library checks with bare exceptions of many kinds
        raise BadInput(f"transformers does not take the configuration: {reason_of(error)}") from None
    settings._attn_implementation = "eager"
    settings.use_cache = False
    if problems := _problems(config, settings):
        raise BadInput("; ".join(problems))
    return settings


def activation_of(settings: Any) -> str:
    """The name of the activation in the feed-forward layers, as the library calls it."""
    names = ("dense_act_fn", "hidden_activation", "hidden_act")
    return str(next(value for name in names if (value := getattr(settings, name, None)) is not None))


def _problems(config: LibraryTextEncoder, settings: Any) -> list[str]:
    counts = {n: getattr(settings, n) for n in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    wrong = {name: value for name, value in counts.items() if type(value) is not int or not 1 <= value <= LARGEST_INT}
    if wrong:
        return [f"{name}: got {shown(value)}, expected a whole number from 1 to {LARGEST_INT}" for name, value in wrong.items()]
    found = []
    if settings.num_hidden_layers > LARGEST_DEPTH:
        found.append(f"num_hidden_layers: got {settings.num_hidden_layers}, expected at most {LARGEST_DEPTH}")
    if (activation := activation_of(settings)) not in KNOWN_ACTIVATIONS:
        found.append(f"activation: got {shown(activation)}, expected one of {', '.join(KNOWN_ACTIVATIONS)}")
    if getattr(settings, "use_bidirectional_attention", False):
        found.append("use_bidirectional_attention: got true, expected false")
    longest = getattr(settings, "max_position_embeddings", None)
    if longest is not None and config.length > longest:
        found.append(f"length: got {config.length} tokens, the encoder takes {longest}")
    if not -settings.num_hidden_layers - 1 <= config.layer <= settings.num_hidden_layers:
        found.append(f"layer: got {config.layer}, the encoder has {settings.num_hidden_layers}")
    if config.normed and config.layer == LAST:
        found.append("normed: the last hidden state has the final norm already")
    if not 0 <= config.dropped < config.length:
        found.append(f"dropped: got {config.dropped} of {config.length} tokens")
    if config.pooled != "no" and settings.model_type != _POOLS:
        found.append(f"pooled: got {config.pooled}, expected no: only CLIP gives a pooled vector")
    return found


def width_of(config: LibraryTextEncoder) -> int:
    """Channels of an embedding."""
    return int(settings_of(config).hidden_size)


def pooled_width(config: LibraryTextEncoder) -> int:
    """Channels of the pooled vector; 0 where there is none."""
    if config.pooled == "no":
        return 0
    settings = settings_of(config)
    return _projected(config, settings) if config.pooled == "projected" else int(settings.hidden_size)


def _projected(config: LibraryTextEncoder, settings: Any) -> int:
    """Channels of a projected vector; a whole CLIP has them outside the part of its text."""
    value = config.config.get("projection_dim", settings.projection_dim)
    if type(value) is not int or not 1 <= value <= LARGEST_INT:
        raise BadInput(f"projection_dim: got {shown(value)}, expected a whole number from 1 to {LARGEST_INT}")
    return value


def own_names(config: LibraryTextEncoder, names: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Name in `LibraryText` -> name in the files, and names in the files that have no place -> what they would be called.

    Names of other parts of a larger model, such as its vision tower, are in neither.
    """
    beginnings = class_of(config).names
    with without_storage():
        wanted = LibraryText(config).state_dict()
    found: dict[str, str] = {}
    left: dict[str, str] = {}
    for name in names:
        if name == PROJECTION and name in wanted:
            found[name] = name
            continue
        first = next((b for b in sorted(beginnings, key=len, reverse=True) if name.startswith(b)), None)
        if first is None:
            continue
        ours = f"{beginnings[first]}{name.removeprefix(first)}"
        if f"model.{ours}" in wanted and f"model.{ours}" not in found:
            found[f"model.{ours}"] = name
        else:
            left[name] = ours
    return found, left


Encoded = Tensor | tuple[Tensor, Tensor]  # embeddings, and where it is asked for the pooled vector


class LibraryText(nn.Module):
    """The library's network with named ports."""

    def __init__(self, config: LibraryTextEncoder) -> None:
        """The weights are not initialised.

        Raises:
            BadInput: if the library cannot build a network of this configuration.
        """
        from transformers.modeling_utils import no_init_weights

        super().__init__()
        settings = settings_of(config)
        self.config, self.settings = config, settings
        kind = class_of(config).network_type()
        with no_init_weights():
            try:
                tables = (nn.Embedding(settings.vocab_size, settings.d_model),) if settings.model_type == "t5" else ()
                self.model = kind(settings, *tables)
            except (TypeError, ValueError, RuntimeError, ZeroDivisionError, KeyError) as error:
                said = reason_of(error)
                raise BadInput(f"transformers builds no {kind.__name__} of the configuration: {said}") from None
        if config.pooled == "projected":
            with no_init_weights():
                self.text_projection = nn.Linear(settings.hidden_size, _projected(config, settings), bias=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Encoded:
        """tokens (1, L) integers, mask (1, L) with 1 = token -> embeddings (1, L - dropped, D), pooled vector (1, P)."""
        found = self.model(input_ids=tokens.long(), attention_mask=mask.long(), output_hidden_states=True)
        x = found.last_hidden_state if self.config.layer == LAST else found.hidden_states[self.config.layer]
        if self.config.normed:
            x = self.final_norm(x)
        x = cut_embeddings(x, mask, self.config, self.settings)
        if self.config.pooled == "no":
            return x
        return x, self.text_projection(found.pooler_output) if self.config.pooled == "projected" else found.pooler_output

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last layer."""
        inner = getattr(self.model, "text_model", self.model)
        names = ("final_layer_norm", "norm")
        norm: nn.Module = next(getattr(inner, name) for name in names if hasattr(inner, name))
        return norm


def cut_embeddings(x: Tensor, mask: Tensor, config: LibraryTextEncoder, settings: Any) -> Tensor:
    """(1, L, D) without its first tokens, and with zeros at padding that sees no token, so that it means nothing.

    Such is padding on the left, and padding further right than a sliding window reaches.
    """
    if config.dropped:
        x = x[:, config.dropped :]
    window = getattr(settings, "sliding_window", None) or config.length
    if config.padding == "right" and window >= config.length:
        return x
    return x * mask[:, config.dropped :, None].to(x.dtype)


Encode = Callable[[Tensor, Tensor], Encoded]


def library_encoder(
    config: LibraryTextEncoder,
    folder: Path | None,
    read: Callable[[str], Tensor],
    adapted: Collection[str] = (),
) -> Encode:
    """As `LibraryText`, in fp32 by the class that wrote the folder, read by itself.

    Without a folder `read` gives the tensors by the names of `LibraryText`; also of a network larger than `MOST_HELD`, whose
    large tensors are read whenever their module runs. `adapted` names tensors that the folder has without their LoRA, and that
    are taken from `read`.

    Raises:
        BadInput: if the library cannot read the folder.
    """
    network = LibraryText(config)
    if 4 * sum(p.numel() for p in network.parameters()) > MOST_HELD:
        large = {name: stand_in(tuple(network.get_parameter(name).shape)) for name in large_parameters(network)}
        state = {name: large[name] if name in large else read(name).float() for name in network.state_dict()}
        network.load_state_dict(state, assign=True)
        OnDisk(network, {name: partial(read, name) for name in large}).running()
    elif folder is None:
        network.load_state_dict({name: read(name).float() for name in network.state_dict()}, assign=True)
    else:
        whole = _from_folder(config, folder)
        network.model = _text_part(whole, class_of(config))
        if config.pooled == "projected":
            network.text_projection = whole.text_projection
        network.load_state_dict({name: read(name).float() for name in adapted}, strict=False)
    network.eval()

    def encode(tokens: Tensor, mask: Tensor) -> Encoded:
        with torch.inference_mode():
            found: Encoded = network(tokens, mask)
        return found

    return encode


def _from_folder(config: LibraryTextEncoder, folder: Path) -> Any:
    """The whole model, of the class that config.json names; the library would give another class random weights."""
    import transformers

    names = config.config.get("architectures") or [class_of(config).network]
    kind = getattr(transformers, str(names[0]), None)
    if kind is None:
        raise BadInput(f"text encoder {folder}: architectures: got {shown(names)}, which transformers does not have")
    return asked_of_library(
        lambda: kind.from_pretrained(str(folder), dtype=torch.float32, attn_implementation="eager", local_files_only=True),
        f"text encoder {folder}: transformers cannot read it",
    )


def _text_part(model: Any, kind: TextClass) -> Any:
    """Of a larger model the part that is the class's network, or does the same."""
    if kind.package == "t5":
        return model.get_encoder()
    if kind.package == "clip":
        return _ClipText(model.text_model)
    return model.get_decoder() if hasattr(model, "lm_head") or hasattr(model, "language_model") else model


class _ClipText(nn.Module):
    """The text half of a whole CLIP, or of one with a projection, as the class without either has it."""

    def __init__(self, text_model: nn.Module) -> None:
        super().__init__()
        self.text_model = text_model

    def forward(self, **arguments: Any) -> Any:
        return self.text_model(**arguments)
