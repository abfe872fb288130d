"""One small component that every quantiser has work on: a convolution, layers of 64 x 64, and one that is too small."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from snapgen_deploy.export.base import Component
from tests.export.graph_cases import arrays, component


class Wide(nn.Module):
    """A convolution, two Linear layers of 4096 weights and one of 192, and a product of two activations."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(4, 64, 3, padding=1)
        self.up, self.down, self.small = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.conv(latent).flatten(2).transpose(1, 2)  # (1, 64, 64)
        x = self.down(self.up(x).sigmoid())
        return torch.bmm(torch.bmm(x, x.transpose(1, 2)).softmax(-1), self.small(x))


class Odd(nn.Module):
    """Two Linear layers of 3600 weights each, whose 60 inputs and outputs divide into neither blocks nor groups."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.up, self.down = nn.Linear(60, 60), nn.Linear(60, 60)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.down(self.up(tokens).sigmoid())


class Attending(nn.Module):
    """A Linear layer behind an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 64)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = torch.bmm(torch.bmm(tokens, tokens.transpose(1, 2)).softmax(-1), tokens)
        return self.out(mixed * 2)


def odd() -> Component:
    return component(Odd(), {"tokens": (1, 4, 60)}, ("states", (1, 4, 60)))


def wide() -> Component:
    made = component(Wide(), {"latent": (1, 4, 8, 8)}, ("velocity", (1, 64, 3)))
    return dataclasses.replace(made, calibration=lambda: iter([arrays(made)] * 2))


def attending() -> Component:
    made = component(Attending(), {"tokens": (2, 16, 64)}, ("states", (2, 16, 64)))
    return dataclasses.replace(made, calibration=lambda: iter([arrays(made)] * 2))


def uncalibrated() -> Component:
    return dataclasses.replace(wide(), calibration=None)
