"""What a decoder of diffusers may have been trained to do otherwise inside: activation, order of q, k, v, groups, eps."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from snapgen_deploy.families.variant import ACTIVATIONS, ORDERS, Activation, Change, Variant, divisors, having, returning

_KINDS = {nn.SiLU: "SiLU", nn.ReLU: "ReLU", nn.GELU: "GELU"}
Order = tuple[str, str, str]


def module_variants(decoder: nn.Module) -> list[Variant]:
    """Those that fit its modules."""
    return [*_activations(decoder), *_orders(decoder), *_groups(decoder), *_eps(decoder)]


def _those(network: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> list[Any]:
    return [m for m in network.modules() if isinstance(m, kind)]


def _with(network: nn.Module, name: str) -> list[Any]:
    """Modules that have one of this name inside."""
    return [m for m in network.modules() if isinstance(getattr(m, name, None), nn.Module)]


def _activations(decoder: nn.Module) -> list[Variant]:
    """Where all of its activations are one."""
    found = {_KINDS[kind] for kind in _KINDS if _those(decoder, kind)}
    if len(found) != 1:
        return []
    (ours,) = found

    def changed(function: Activation) -> Change:
        return lambda network: having(_those(network, tuple(_KINDS)), lambda m: {"forward": function})

    return [Variant("activation", name, ours, changed(f)) for name, f in ACTIVATIONS.items() if name != ours]


def _orders(decoder: nn.Module) -> list[Variant]:
    """Of attention with three projections, or with one for all three."""
    three = bool(_with(decoder, "to_q"))
    if not three and not _with(decoder, "to_qkv"):
        return []

    def changed(order: Order) -> Change:
        def permuted(m: Any) -> dict[str, Any]:
            return {f"to_{name}": getattr(m, f"to_{source}") for name, source in zip("qkv", order, strict=True)}

        def chunks(x: Tensor) -> Tensor:
            q, k, v = x.chunk(3, 1)
            parts = {"q": q, "k": k, "v": v}
            return torch.cat([parts[name] for name in order], 1)

        def change(network: nn.Module) -> AbstractContextManager[None]:
            if three:
                return having(_with(network, "to_q"), permuted)
            return returning([m.to_qkv for m in _with(network, "to_qkv")], chunks)

        return change

    fix = "exchange their names in the file" if three else "exchange the thirds of to_qkv"
    return [Variant("q, k, v of attention", n, "q, k, v", changed(order), fix) for n, order in ORDERS.items()]


def _groups(decoder: nn.Module) -> list[Variant]:
    norms = _those(decoder, nn.GroupNorm)
    counts = {m.num_groups for m in norms}
    if len(counts) != 1:
        return []
    (ours,), width = counts, math.gcd(*(m.num_channels for m in norms))

    def changed(count: int) -> Change:
        return lambda network: having(_those(network, nn.GroupNorm), lambda m: {"num_groups": count})

    fixes = {n: f"set norm_num_groups to {n}" for n in divisors(width) if n != ours}
    return [Variant("groups", f"{n} groups", f"{ours} groups", changed(n), fix) for n, fix in fixes.items()]


def _eps(decoder: nn.Module) -> list[Variant]:
    found = {m.eps for m in _those(decoder, nn.GroupNorm)}
    if len(found) != 1:
        return []
    (ours,) = found

    def changed(value: float) -> Change:
        return lambda network: having(_those(network, nn.GroupNorm), lambda m: {"eps": value})

    return [Variant("eps", f"GroupNorm eps {v:g}", f"{ours:g}", changed(v)) for v in (1e-5, 1e-6) if v != ours]
