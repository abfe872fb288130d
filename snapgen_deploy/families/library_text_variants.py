"""What a text encoder of transformers may have been trained to do otherwise than its folder says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from snapgen_deploy.families.variant import (
    ACTIVATIONS,
    ORDERS,
    Activation,
    Change,
    Variant,
    divisors,
    given,
    having,
    modules_of,
)
from snapgen_deploy.models.library_text import LAST, LEGACY_END, LibraryText, activation_of, pooled_width

_MOST_HEADS = 64
_BASES = (10_000.0, 500_000.0, 1_000_000.0)
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
        *(
            [Variant("norm placement", "norm after attention and MLP", "norm before them", _post_norm)]
            if _pairs(network)
            else []
        ),
        Variant("final norm", "no final norm", "final norm", _unnormed),
        *_heads(network),
        *_bases(network),
        *_eps(network),
    ]


def _heads(network: LibraryText) -> list[Variant]:
    """Other numbers of heads, where no table is kept for each."""
    settings = network.settings
    if settings.model_type != "clip_text_model":
        return []
    ours, width = settings.num_attention_heads, settings.hidden_size

    def cut(count: int) -> Change:
        size = width // count
        return lambda network: having(_attention(network), lambda a: {"head_dim": size, "scale": size**-0.5})

    return [
        Variant("heads", f"{n} heads", f"{ours} heads", cut(n), f"set num_attention_heads to {n}")
        for n in divisors(width)
        if n != ours and n <= _MOST_HEADS
    ]


def _bases(network: LibraryText) -> list[Variant]:
    """Other bases of the rotary positions; of Gemma 3 those of its layers that see everything."""
    rotary = getattr(network.model, "rotary_emb", None)
    if rotary is None:
        return []
    ours, count = float(network.settings.rope_theta), rotary.inv_freq.shape[0]

    def turned(base: float) -> Change:
        inverse = base ** -(torch.arange(count) / count)
        return lambda network: having([network.get_submodule("model.rotary_emb")], lambda m: {"inv_freq": inverse})

    return [
        Variant("RoPE's base", f"{base:g}", f"{ours:g}", turned(base), f"set rope_theta to {base:.0f}")
        for base in _BASES
        if base != ours
    ]


def _eps(network: LibraryText) -> list[Variant]:
    """Another number under the root of the norms."""

    def named(norm: Any) -> str:
        return next((n for n in ("variance_epsilon", "eps") if isinstance(getattr(norm, n, None), float)), "")

    def changed(value: float) -> Change:
        return lambda network: having([m for m in network.modules() if named(m)], lambda m: {named(m): value})

    if network.settings.model_type.startswith("gemma"):  # its hidden states are so large that it does not count
        return []
    ours = float(getattr(network.final_norm, named(network.final_norm)))
    return [
        Variant("eps", f"eps {v:g}", f"{ours:g}", changed(v), "set the eps in config.json") for v in (1e-5, 1e-6) if v != ours
    ]


def _unnormed(network: nn.Module) -> AbstractContextManager[None]:
    assert isinstance(network, LibraryText)
    return having([network.final_norm], lambda m: {"forward": lambda x: x})


def _pairs(network: nn.Module) -> list[tuple[Any, Any, Any]]:
    """Each layer with the norms before its attention and its feed-forward part; none of layers with more norms."""
    names = (("layer_norm1", "layer_norm2"), ("input_layernorm", "post_attention_layernorm"))
    return [
        (layer, getattr(layer, first), getattr(layer, second))
        for layer in network.modules()
        for first, second in names
        if hasattr(layer, first) and hasattr(layer, second) and not hasattr(layer, "pre_feedforward_layernorm")
    ]


@contextmanager
def _post_norm(network: nn.Module) -> Iterator[None]:
    """x = norm1(x + attention(x)); x = norm2(x + mlp(x)), by the layers' own code, which has the norms before both."""
    with ExitStack() as stack:
        for layer, first, second in _pairs(network):
            stack.enter_context(_norm_after(layer, first, second))
        yield


@contextmanager
def _norm_after(layer: nn.Module, first: nn.Module, second: nn.Module) -> Iterator[None]:
    one, two, kept = first.forward, second.forward, dict[str, Tensor]()

    def between(x: Tensor) -> Tensor:
        kept.update(sum=x, normed=one(x))
        return kept["normed"]

    def last(module: nn.Module, args: Any, result: Any) -> Any:
        plain = isinstance(result, Tensor)  # some layers return a tuple
        y = two((result if plain else result[0]) - kept["sum"] + kept["normed"])
        return y if plain else (y, *result[1:])

    with having([first], lambda m: {"forward": lambda x: x}), having([second], lambda m: {"forward": between}):
        hook = layer.register_forward_hook(last)
        try:
            yield
        finally:
            hook.remove()


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

    names = {"q": q, "k": k, "v": v}

    def fits(order: tuple[str, str, str]) -> bool:
        return all(layer_weight(a).shape == layer_weight(b).shape for a, b in zip(names, order, strict=True))

    def layer_weight(name: str) -> Tensor:
        weight: Tensor = getattr(layer, names[name]).weight
        return weight

    def changed(order: tuple[str, str, str]) -> Change:
        def permuted(m: Any) -> dict[str, Any]:
            return {names[name]: getattr(m, names[source]) for name, source in zip("qkv", order, strict=True)}

        return lambda network: having(_attention(network), permuted)

    fix = "exchange their names in the file"
    return [Variant("q, k, v of attention", n, "q, k, v", changed(o), fix) for n, o in ORDERS.items() if fits(o)]


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
