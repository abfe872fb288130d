"""What text encoders in the wild do otherwise than `models.text_encoder`, with the same tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.families.variant import Change, Variant, activations, divisors, given, having, modules_of, orders, returning
from snapgen_deploy.models.attention import MASKED, attend
from snapgen_deploy.models.text_encoder import TextBlock, TextEncoder


def text_variants(network: nn.Module) -> Sequence[Variant]:
    """Those that fit the tensors of a text encoder."""
    assert isinstance(network, TextEncoder)
    width, heads = network.config.width, network.config.heads
    last = [Variant("last layer", "the output of the last block but one", "that of the last", _without_last)]
    return [
        Variant("mask", "causal mask", "every token sees all", _causal),
        *activations("activation", TextBlock, "tanh GELU"),
        Variant("padding", "padding is seen", "padding is masked", _unmasked),
        Variant("norm placement", "norm after attention and MLP", "norm before them", _post_norm),
        Variant("final norm", "no final norm", "final norm", lambda n: having([n], lambda _: {"norm": nn.Identity()})),
        *(last if network.config.layers > 1 else ()),
        *orders("attention", TextBlock, network),
        *(
            Variant("heads", f"{n} heads", f"{heads} heads", _heads(n), f"set its heads to {n}")
            for n in divisors(width)
            if n != heads and width // n >= min(8, width // 8) and width // n <= 256
        ),
        Variant("positions", "no position embeddings", "position embeddings", _without_positions),
        Variant("embeddings", "token embeddings times √width", "as they are", _scaled(math.sqrt(width))),
        *(Variant("eps", f"LayerNorm eps {eps:g}", "1e-05", _eps(eps)) for eps in (1e-6, 1e-12)),
    ]


def _causal(network: nn.Module) -> AbstractContextManager[None]:
    def bias(args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, padding = args
        above = torch.full((x.shape[1], x.shape[1]), MASKED).triu(1)  # (L, L)
        return x, padding + above

    return given(modules_of(network, TextBlock), bias)


def _unmasked(network: nn.Module) -> AbstractContextManager[None]:
    return given([network], lambda args: (args[0], torch.ones_like(args[1])))


def _post_norm(network: nn.Module) -> AbstractContextManager[None]:
    def after(block: TextBlock) -> dict[str, Any]:
        def forward(x: Tensor, bias: Tensor) -> Tensor:
            q, k, v = (p(x).unflatten(2, (block.heads, -1)).transpose(1, 2) for p in (block.q, block.k, block.v))
            x = block.norm1(x + block.out(attend(q, k, v, bias).transpose(1, 2).flatten(2)))
            y: Tensor = block.norm2(x + block.down(F.gelu(block.up(x), approximate="tanh")))
            return y

        return {"forward": forward}

    return having(modules_of(network, TextBlock), after)


def _without_last(network: nn.Module) -> AbstractContextManager[None]:
    return having([network], lambda n: {"blocks": n.blocks[:-1]})


def _without_positions(network: nn.Module) -> AbstractContextManager[None]:
    return having([network], lambda n: {"positions": nn.Parameter(torch.zeros_like(n.positions), requires_grad=False)})


def _heads(count: int) -> Change:
    return lambda network: having(modules_of(network, TextBlock), lambda block: {"heads": count})


def _scaled(factor: float) -> Change:
    return lambda network: returning(modules_of(network, nn.Embedding), lambda x: x * factor)


def _eps(eps: float) -> Change:
    return lambda network: having(modules_of(network, nn.LayerNorm), lambda norm: {"eps": eps})
