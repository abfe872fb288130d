"""What U-Nets in the wild do otherwise than `models.unet`, with the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn

from snapgen_deploy.families.variant import Change, Variant, activations, given, having, modules_of, orders, returning
from snapgen_deploy.models.text_projection import TextProjection
from snapgen_deploy.models.unet import GatedFeedForward, MultiQueryAttention, SpatialTransformer, TimedBlock, UNet

Turned = Callable[[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]


def unet_variants(network: nn.Module) -> Sequence[Variant]:
    """Those that fit the tensors of a U-Net."""
    assert isinstance(network, UNet)
    c = network.config
    thetas = [t for t in (100.0, 256.0, 1000.0, 10000.0, 1000000.0) if t != c.rope_theta]
    return [
        *activations("activation of the FFN", GatedFeedForward, "tanh GELU"),
        *activations("activation of the residual blocks", TimedBlock, "SiLU"),
        *activations("activation of the text projection", TextProjection, "tanh GELU"),
        Variant("RoPE", "columns before rows", "rows before columns", _roped(_columns_first)),
        Variant("RoPE", "no rotary positions", "rotary positions", _roped(_still)),
        *(Variant("RoPE's base", f"{t:g}", f"{c.rope_theta:g}", _theta(t), f"set student.rope_theta to {t:g}") for t in thetas),
        *orders("attention", MultiQueryAttention, network),
        Variant("norm of q and k", "none", "RMSNorm", _without_norms),
        Variant("padding", "padding of texts is seen", "it is masked", _unmasked),
        Variant("time features", "sines first", "cosines first", _sines_first),
        Variant("velocity", "picture minus noise", "noise minus picture", lambda n: returning([n], lambda v: -v)),
    ]


def _columns_first(rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    half = rope[0].shape[-1] // 2
    return rope[0].roll(half, -1), rope[1].roll(half, -1)


def _still(rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.ones_like(rope[0]), torch.zeros_like(rope[1])


def _roped(turned: Turned) -> Change:
    """Blocks that are called with another rotary table."""

    def change(network: nn.Module) -> AbstractContextManager[None]:
        blocks = [block for part in modules_of(network, SpatialTransformer) for block in part.blocks]
        return given(blocks, lambda args: (*args[:3], turned(args[3])))

    return change


def _theta(theta: float) -> Change:
    return lambda network: having(modules_of(network, SpatialTransformer), lambda part: {"theta": theta})


@contextmanager
def _without_norms(network: nn.Module) -> Iterator[None]:
    norms = [norm for layer in modules_of(network, MultiQueryAttention) for norm in (layer.q_norm, layer.k_norm)]
    with ExitStack() as hooks:
        for norm in norms:
            hooks.callback(norm.register_forward_hook(lambda module, args, result: args[0] * module.weight).remove)
        yield


def _unmasked(network: nn.Module) -> AbstractContextManager[None]:
    return given([network], lambda args: (*args[:3], {name: torch.ones_like(mask) for name, mask in args[3].items()}))


def _sines_first(network: nn.Module) -> AbstractContextManager[None]:
    assert isinstance(network, UNet)
    return given([network.time], lambda args: (args[0].roll(args[0].shape[1] // 2, 1),))
