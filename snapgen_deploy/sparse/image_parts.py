"""Parts that decoders of `diffusers` are rewritten from: convolutions around their tensors, activations, residual sums."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.unfilled import without_storage
from snapgen_deploy.sparse.image_layers import Sum, Swish


def multiplied(conv: nn.Conv2d, scale: Tensor) -> nn.Conv2d:
    """A copy of a convolution whose result is `scale` times as large."""
    made = copy.deepcopy(conv)
    made.weight = nn.Parameter(conv.weight.detach() * scale.view(-1, 1, 1, 1), requires_grad=False)
    if conv.bias is not None:
        made.bias = nn.Parameter(conv.bias.detach() * scale, requires_grad=False)
    return made


def conv_around(weight: Tensor, bias: Tensor | None, padding: tuple[int, int], groups: int = 1) -> nn.Conv2d:
    """A convolution around tensors, weight (out, in/groups, kh, kw)."""
    kernel = (weight.shape[2], weight.shape[3])
    with without_storage():
        channels = weight.shape[1] * groups
        made = nn.Conv2d(channels, weight.shape[0], kernel, padding=padding, groups=groups, bias=bias is not None)
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made


def some_channels(conv: nn.Conv2d, own: Tensor) -> nn.Conv2d:
    """Some output channels of a convolution; of a grouped one whole groups, and their input channels."""
    own = own.to(conv.weight.device)
    groups = len(own) // (conv.out_channels // conv.groups) if conv.groups > 1 else 1
    padding = (int(conv.padding[0]), int(conv.padding[1]))
    return conv_around(conv.weight.detach()[own], None if conv.bias is None else conv.bias.detach()[own], padding, groups)


def image_conv(conv: Any) -> nn.Conv2d:
    """A convolution over images, or over one frame: of a causal one only the last temporal tap sees it."""
    if isinstance(conv, nn.Conv2d):
        return conv
    if not isinstance(conv, nn.Conv3d) or conv.stride != (1, 1, 1) or not hasattr(conv, "_padding"):
        raise not_written(conv)
    ends: Any = conv._padding  # as the class pads by itself: two ends each of width, height, time
    return conv_around(conv.weight.detach()[:, :, -1].contiguous(), conv.bias, (ends[2], ends[0]))


def not_written(module: object, what: str = "") -> BadInput:
    """That a module of the library is not known here."""
    return BadInput(f"decoder: a {type(module).__name__} of diffusers{what and f' {what}'} is not rewritten for any target")


def activation(module: nn.Module) -> nn.Module:
    """An activation in operations that delegates take."""
    if isinstance(module, nn.SiLU):
        return Swish()
    if isinstance(module, nn.ReLU):
        return nn.ReLU()
    if isinstance(module, nn.Identity):
        return module
    raise not_written(module, "as an activation")


def residual(main: list[nn.Module], shortcut: nn.Module | None, after: nn.Module | None = None) -> Sum:
    """Layers in a row, their input beside them, and what comes after the sum of both."""
    return Sum(nn.Sequential(*main), nn.Identity() if shortcut is None else shortcut, after)


def scaled_conv(conv: nn.Conv2d, factor: float) -> nn.Conv2d:
    """As `multiplied`, with one factor for all channels."""
    return multiplied(conv, torch.full((conv.out_channels,), factor, device=conv.weight.device))


class GatedConvolutions(nn.Module):
    """The two halves of a GLUMBConv's channels as convolutions of their own, so that nothing is cut."""

    def __init__(self, source: Any, act: nn.Module) -> None:
        super().__init__()
        half, self.act = source.conv_depth.out_channels // 2, act
        halves = [torch.arange(i * half, (i + 1) * half) for i in range(2)]
        self.value, self.gate = (
            nn.Sequential(some_channels(source.conv_inverted, own), act, some_channels(source.conv_depth, own))
            for own in halves
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, inner, H, W)."""
        gated: Tensor = self.value(x) * self.act(self.gate(x))
        return gated
