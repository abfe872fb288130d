"""The reference tiny decoder: latent (B, C, h, w) -> picture (B, 3, f*h, f*w) in [-1, 1].

Block recipe of SnapGen (arXiv 2412.09619): no attention; depthwise 3x3 -> pointwise (expand) -> depthwise 3x3 -> GroupNorm
-> SiLU -> pointwise, a 1x1 shortcut where the channels differ; nearest 2x upsampling followed by a convolution.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.models.config import DecoderConfig


class ResidualBlock(nn.Module):
    """Separable residual block."""

    def __init__(self, channels_in: int, channels_out: int, expand: int, groups: int) -> None:
        super().__init__()
        inner = channels_in * expand
        self.depthwise1 = nn.Conv2d(channels_in, channels_in, 3, padding=1, groups=channels_in)
        self.expand = nn.Conv2d(channels_in, inner, 1)
        self.depthwise2 = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.norm = nn.GroupNorm(groups, inner, eps=1e-5)
        self.project = nn.Conv2d(inner, channels_out, 1)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W)."""
        y = self.depthwise2(self.expand(self.depthwise1(x)))  # (B, in*expand, H, W)
        out: Tensor = self.shortcut(x) + self.project(F.silu(self.norm(y)))
        return out


class Level(nn.Module):
    """Residual blocks at one resolution, then (but for the last level) nearest 2x upsampling and a convolution."""

    def __init__(self, channels: int, following: int | None, blocks: int, expand: int, groups: int) -> None:
        super().__init__()
        last = following if following is not None else channels
        widths = [channels] * blocks + [last]  # the channels shrink in the level's last block, before the upsampling
        self.blocks = nn.ModuleList(ResidualBlock(a, b, expand, groups) for a, b in itertools.pairwise(widths))
        self.up = nn.Conv2d(last, last, 3, padding=1, groups=last) if following is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', 2H, 2W), or (B, C, H, W) at the last level."""
        for block in self.blocks:
            x = block(x)
        return x if self.up is None else self.up(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class TinyDecoder(nn.Module):
    """The decoder; it undoes the latent's per-channel normalisation itself."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.mean: Tensor
        self.std: Tensor
        count = config.latent_channels
        self.register_buffer("mean", torch.tensor(config.latent_mean or (0.0,) * count).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.latent_std or (1.0,) * count).view(1, -1, 1, 1), persistent=False)
        self.first = nn.Conv2d(count, config.channels[0], 3, padding=1)
        following = [*config.channels[1:], None]
        self.levels = nn.ModuleList(
            Level(c, n, b, config.expand, config.groups)
            for c, n, b in zip(config.channels, following, config.blocks, strict=True)
        )
        self.last = nn.Conv2d(config.channels[-1], 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """Normalised latent (B, C, h, w) -> picture (B, 3, f*h, f*w), nominally in [-1, 1]."""
        x = self.first(latent * self.std + self.mean)  # (B, c0, h, w)
        for level in self.levels:
            x = level(x)
        picture: Tensor = self.last(x)
        return picture
