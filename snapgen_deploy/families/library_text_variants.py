"""What a text encoder of transformers may have been trained to do otherwise than its folder says."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from snapgen_deploy.families.variant import ACTIVATIONS, Activation, Change, Variant, given, having, modules_of
from snapgen_deploy.models.library_text import LAST, LEGACY_END, LibraryText, activation_of, pooled_width

# The library's names of what `variant.ACTIVATIONS` has.
_NAMES = {
    "gelu": "GELU", "gelu_new": "tanh GELU", "gelu_pytorch_tanh": "tanh GELU", "quick_gelu": "quick_gelu", "silu": "SiLU",
    "swish": "SiLU", "relu": "ReLU",
}  # fmt: skip


def library_text_variants(network: nn.Module) -> Sequence[Variant]:
    """Those that fit its tensors."""
    assert isinstance(network, LibraryText)
    config, count = network.config, int(network.settings.num_hidden_layers)
    ours, causal = _NAMES[activation_of(network.settings)], network.settings.model_type != "t5"
    here = "the last hidden state" if config.layer == LAST else f"hidden state {config.layer}"
    states = [(f"hidden state {n}", n, False) for n in range(-2, -min(count, 4) - 1, -1) if n != config.layer]
    states += [(f"hidden state {n} with the final norm", n, True) for n in (-2,) if not config.normed]
    states += [("the last hidden state", LAST, False)] if config.layer != LAST else []
    return [
        *([Variant("mask", "no causal mask", "causal mask", _bidirectional)] if causal else []),
        *(
            Variant("activation", name, ours, _activation(function), "set the activation in config.json")
            for name, function in ACTIVATIONS.items()
            if name != ours
        ),
        Variant("padding", "padding is seen", "padding is masked", _unmasked, "set padding_seen"),
        *(Variant("hidden state", name, here, _state(n, norm), f"set layer to {n}") for name, n, norm in states),
        *_orders(network),
        *_pooling(network),
    ]


def _pooling(network: LibraryText) -> list[Variant]:
    """Where a text ends, and what is made of the hidden state there."""
    config, settings, kind = network.config, network.settings, "pooled vector"
    if config.pooled == "no":
        return []
    places = {"at the highest id": LEGACY_END, f"at the first id {settings.vocab_size - 1}": settings.vocab_size - 1}
    ours = next((n for n, end in places.items() if end == settings.eos_token_id), f"at the first id {settings.eos_token_id}")
    found = [Variant(kind, n, ours, _ending(end), f"set eos_token_id to {end}") for n, end in places.items() if n != ours]
    if config.pooled == "projected" and settings.hidden_size == pooled_width(config):
        found.append(Variant(kind, "not projected", "projected", _unprojected, "set projected = false"))
    return found


def _ending(end: int) -> Change:
    return lambda network: having([network.get_submodule("model.text_model")], lambda m: {"eos_token_id": end})


def _unprojected(network: nn.Module) -> AbstractContextManager[None]:
    return having([network], lambda n: {"config": replace(n.config, pooled="plain")})


def _attention(network: nn.Module) -> list[Any]:
    """The layers with the three projections, by whatever names."""
    return [m for m in network.modules() if any(isinstance(getattr(m, name, None), nn.Linear) for name in ("q_proj", "q"))]


def _orders(network: LibraryText) -> list[Variant]:
    layer = _attention(network)[0]
    q, k, v = ("q_proj", "k_proj", "v_proj") if hasattr(layer, "q_proj") else ("q", "k", "v")

    def swapped(a: str, b: str) -> Variant:
        def change(network: nn.Module) -> AbstractContextManager[None]:
            return having(_attention(network), lambda m: {a: getattr(m, b), b: getattr(m, a)})

        return Variant("q, k, v of attention", f"{a} and {b} swapped", "as named", change, "exchange their names in the file")

    pairs = [(q, k), (k, v), (q, v)]
    return [swapped(a, b) for a, b in pairs if getattr(layer, a).weight.shape == getattr(layer, b).weight.shape]


def _activation(function: Activation) -> Change:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    def changed(network: nn.Module) -> AbstractContextManager[None]:
        return having([m for m in network.modules() if _activation_in(m)], lambda m: {_activation_in(m): Other()})

    return changed


def _activation_in(module: nn.Module) -> str:
    """The attribute that holds a feed-forward layer's activation; "" in other modules."""
    return next((n for n in ("activation_fn", "act_fn", "act") if isinstance(getattr(module, n, None), nn.Module)), "")


def _unmasked(network: nn.Module) -> AbstractContextManager[None]:
    return given(modules_of(network, LibraryText), lambda args: (args[0], torch.ones_like(args[1])))


def _state(layer: int, normed: bool) -> Change:
    def other(network: Any) -> dict[str, Any]:
        return {"config": replace(network.config, layer=layer, normed=normed)}

    return lambda network: having(modules_of(network, LibraryText), other)


def _bidirectional(network: nn.Module) -> AbstractContextManager[None]:
    """Every token sees all tokens: attention without the part of its mask that hides later ones."""

    def seen(module: Any) -> dict[str, Any]:
        return {"forward": _without_causal(module.forward)}

    return having(_attention(network), seen)


def _without_causal(forward: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        if "causal_attention_mask" in kwargs:
            kwargs["causal_attention_mask"] = None
        elif (mask := kwargs.get("attention_mask")) is not None:
            kwargs["attention_mask"] = mask[..., -1:, :].expand_as(mask)  # the last token sees all but padding
        return forward(*args, **kwargs)

    return call
