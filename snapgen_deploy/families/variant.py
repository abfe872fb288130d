"""Other arithmetic that the same tensors fit: what a reference is tried with when it disagrees with golden vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Activation = Callable[[Tensor], Tensor]
Change = Callable[[nn.Module], AbstractContextManager[None]]
NO_SETTING = "this package's network computes no other"


@dataclass(frozen=True)
class Variant:
    """One thing that a team's network may do otherwise. While `change` is open, the reference's network does so too."""

    kind: str  # what it is about; those of one kind exclude each other
    theirs: str
    ours: str
    change: Change
    fix: str = NO_SETTING


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI CLIP's: x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(x: Tensor) -> Tensor:
    """GELU with the approximation by tanh."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: Mapping[str, Activation] = {
    "GELU": F.gelu, "tanh GELU": tanh_gelu, "quick_gelu": quick_gelu, "SiLU": F.silu, "ReLU": F.relu,
}  # fmt: skip
ORDERS: Mapping[str, tuple[str, str, str]] = {
    "q and k swapped": ("k", "q", "v"), "k and v swapped": ("q", "v", "k"), "q and v swapped": ("v", "k", "q"),
    "k, v, q": ("k", "v", "q"), "v, q, k": ("v", "q", "k"),
}  # fmt: skip


def activations(what: str, kind: type[nn.Module], ours: str) -> list[Variant]:
    """The usual activations in place of `ours` inside modules of one class."""

    def changed(function: Activation) -> Change:
        return lambda network: _swapped_activation(modules_of(network, kind), function)

    return [Variant(what, name, ours, changed(function)) for name, function in ACTIVATIONS.items() if name != ours]


class _Swap(TorchFunctionMode):
    """Has another function in place of GELU and SiLU."""

    def __init__(self, function: Activation) -> None:
        super().__init__()
        self.function = function

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (F.gelu, F.silu):
            return self.function(args[0])  # outside of the mode, which is off while this runs
        return func(*args, **(kwargs or {}))


@contextmanager
def _swapped_activation(modules: Sequence[nn.Module], function: Activation) -> Iterator[None]:
    inside: list[ExitStack] = []

    def enter(module: nn.Module, args: Any) -> None:
        inside.append(ExitStack())
        inside[-1].enter_context(_Swap(function))

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        inside.pop().close()

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield


def modules_of(network: nn.Module, kind: type[nn.Module]) -> list[Any]:
    """The modules of one class inside a network."""
    return [module for module in network.modules() if isinstance(module, kind)]


@contextmanager
def having(objects: Iterable[Any], values: Callable[[Any], Mapping[str, Any]]) -> Iterator[None]:
    """Objects with other attributes while this is open: those that `values` gives for each."""
    missing = object()
    before: list[tuple[Any, str, Any]] = []
    for one in objects:
        for name, value in values(one).items():
            own = name in vars(one) or not hasattr(type(one), name)
            before.append((one, name, getattr(one, name) if own else missing))
            setattr(one, name, value)
    try:
        yield
    finally:
        for one, name, value in reversed(before):
            if value is missing:
                delattr(one, name)  # a method that was covered
            else:
                setattr(one, name, value)


@contextmanager
def given(modules: Iterable[nn.Module], change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Iterator[None]:
    """Modules that are called with other arguments while this is open."""
    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_pre_hook(lambda module, args: change(args)).remove)
        yield


@contextmanager
def returning(modules: Iterable[nn.Module], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Modules whose results are changed while this is open."""
    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(lambda module, args, result: change(result)).remove)
        yield


def orders(what: str, kind: type[nn.Module], network: nn.Module) -> list[Variant]:
    """The three projections of attention layers in other orders, where their shapes allow it; `what` names the layers."""
    layers = modules_of(network, kind)

    def fits(order: tuple[str, str, str]) -> bool:
        pairs = zip("qkv", order, strict=True)
        return all(getattr(layer, a).weight.shape == getattr(layer, b).weight.shape for layer in layers for a, b in pairs)

    def changed(order: tuple[str, str, str]) -> Change:
        def permuted(layer: Any) -> dict[str, Any]:
            return {name: getattr(layer, source) for name, source in zip("qkv", order, strict=True)}

        return lambda network: having(modules_of(network, kind), permuted)

    fix = "exchange them in the key map"
    return [Variant(f"q, k, v of {what}", n, "q, k, v", changed(o), fix) for n, o in ORDERS.items() if layers and fits(o)]


def divisors(number: int) -> list[int]:
    """All of them, ascending."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})
