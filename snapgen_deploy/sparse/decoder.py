"""The decoder in operations that a phone's delegate takes in one partition; both layouts keep images as (B, C, H, W)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.models.decoder import Level, ResidualBlock, TinyDecoder
from snapgen_deploy.sparse.decoder_range import Scales, scaled

UpsampleForm = Literal["native", "transposed"]
LONG_MEAN = 1 << 14  # positions from which on `ImageGroupNorm.tiles_first` matters
LONG_GROUP = 1 << 17  # numbers of a group above which one operation of onnxruntime's loses digits
TILE = 32  # positions of a side, at most


class ImageGroupNorm(nn.Module):
    """GroupNorm of an image by means over space: of each channel, then of a group's channels by a grouped 1x1 convolution.

    Only means are taken, of centred values: sums over a megapixel map would overflow half precision. The variance is
    multiplied by 16: an eps of 1e-5 is below half precision's normal numbers, and hardware that flushes those to zero would
    give NaN for a group without variance. If the input is multiplied by `scale` (C,), eps is multiplied by its square, but
    stays a normal number: the variance is many thousand times larger then.

    With `tiles_first`, a mean over many positions is the mean of the means of tiles. XNNPACK adds all numbers of a mean one
    after the other: 1e-4 off for 1024 x 1024, against 4e-7 by tiles, in 0.8 times the time (executorch 1.4.1, x86-64).
    """

    tiles_first = False
    average: Tensor
    eps16: Tensor
    weight4: Tensor
    bias: Tensor

    def __init__(self, source: nn.GroupNorm, scale: Tensor | None = None) -> None:
        super().__init__()
        self.groups = source.num_groups
        members = source.num_channels // source.num_groups
        square = torch.ones(1, 1, 1, 1) if scale is None else (scale * scale).view(1, -1, 1, 1)
        self.register_buffer("average", torch.full((source.num_channels, members, 1, 1), 1.0 / members))
        self.register_buffer("eps16", (square * source.eps * 16.0).clamp(min=2.0**-14))
        self.register_buffer("weight4", source.weight.detach().view(1, -1, 1, 1) * 4.0)
        self.register_buffer("bias", source.bias.detach().view(1, -1, 1, 1))

    def group_mean(self, means: Tensor) -> Tensor:
        """Means of channels (B, C, 1, 1) -> the same for all channels of a group."""
        return F.conv2d(means, self.average, groups=self.groups)

    def ungrouped(self) -> None:
        """From now on, take the means with a dense convolution, zero between groups, for runtimes without a grouped one."""
        groups = torch.block_diag(*self.average.view(self.groups, -1, self.average.shape[1]))
        self.average, self.groups = groups[:, :, None, None].contiguous(), 1

    def mean(self, x: Tensor) -> Tensor:
        """The mean over space: (B, C, H, W) -> (B, C, 1, 1)."""
        if self.tiles_first and x.shape[2] * x.shape[3] >= LONG_MEAN:
            tile = [max(n for n in range(1, TILE + 1) if side % n == 0) for side in x.shape[2:]]
            if tile != [1, 1]:
                x = F.avg_pool2d(x, tile, tile, count_include_pad=False)  # stride and flag as XNNPACK wants them
        return x.mean((2, 3), keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x - self.group_mean(self.mean(x))  # (B, C, H, W)
        # exporters would fold a factor behind the convolution into it, as a second table
        square = self.mean(x * x) * 16.0  # (B, C, 1, 1)
        scale = (self.group_mean(square) + self.eps16).rsqrt() * self.weight4  # (B, C, 1, 1)
        return x * scale + self.bias


class LongGroupNorm(ImageGroupNorm):
    """GroupNorm as one operation, and of large groups by means of tiles.

    onnxruntime adds the numbers of a group one after the other, too, and where many are equal their rounding has one sign: of
    262,144 numbers, half of them equal, the result is 7e-5 off, by tiles 2e-7, in 8 times the time (onnxruntime 1.32).
    """

    tiles_first = True

    def __init__(self, source: nn.GroupNorm) -> None:
        super().__init__(source)
        self.source = source

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        numbers = x.shape[1] // self.source.num_groups * x.shape[2] * x.shape[3]
        normed: Tensor = super().forward(x) if numbers > LONG_GROUP else self.source(x)
        return normed


def with_tiles_first(network: nn.Module) -> nn.Module:
    """The network, with `tiles_first` in all its norms."""
    for module in network.modules():
        if isinstance(module, ImageGroupNorm):
            module.tiles_first = True
    return network


class ImageBlock(nn.Module):
    """`models.decoder.ResidualBlock`; the input of its norm is multiplied by `scale` (C,)."""

    def __init__(self, source: ResidualBlock, scale: Tensor | None = None) -> None:
        super().__init__()
        self.depthwise1, self.expand, self.depthwise2 = source.depthwise1, source.expand, source.depthwise2
        if scale is not None:
            self.expand, self.depthwise2 = scaled(source.expand, source.depthwise2, scale)
        self.norm, self.project, self.shortcut = ImageGroupNorm(source.norm, scale), source.project, source.shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W)."""
        y = self.norm(self.depthwise2(self.expand(self.depthwise1(x))))  # (B, in*expand, H, W)
        out: Tensor = self.shortcut(x) + self.project(y * y.sigmoid())
        return out


class NearestDoubling(nn.Module):
    """Nearest 2x upsampling, by its own operation or as a transposed convolution.

    XNNPACK takes no nearest upsampling, but it takes transposed convolutions. Its grouped one is slow: with a dense kernel
    (the identity over channels at each of the 2x2 positions) the doubling took an eighth of the time at 32 channels and
    256 x 256 (measured, executorch 1.4.1 on x86-64; concatenations took twice the dense kernel's time).
    """

    kernel: Tensor

    def __init__(self, channels: int, form: UpsampleForm) -> None:
        super().__init__()
        self.form = form
        if form == "transposed":
            self.register_buffer("kernel", torch.eye(channels)[:, :, None, None].repeat(1, 1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        if self.form == "native":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.conv_transpose2d(x, self.kernel, stride=2)


class ImageLevel(nn.Module):
    """`models.decoder.Level`."""

    def __init__(self, source: Level, upsample: UpsampleForm, scales: Scales) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ImageBlock(b, scales.get(b.norm)) for b in source.blocks if isinstance(b, ResidualBlock))
        self.doubling = NearestDoubling(source.up.out_channels, upsample) if source.up is not None else None
        self.up = source.up

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', 2H, 2W), or (B, C, H, W) at the last level."""
        for block in self.blocks:
            x = block(x)
        return x if self.up is None or self.doubling is None else self.up(self.doubling(x))


class ImageDecoder(nn.Module):
    """`models.TinyDecoder` with the latent's normalisation as an operation of its own."""

    mean: Tensor
    std: Tensor

    def __init__(self, source: TinyDecoder, upsample: UpsampleForm, scales: Scales) -> None:
        super().__init__()
        self.register_buffer("mean", source.mean)
        self.register_buffer("std", source.std)
        self.first, self.last = source.first, source.last
        self.levels = nn.ModuleList(ImageLevel(level, upsample, scales) for level in source.levels if isinstance(level, Level))

    def forward(self, latent: Tensor) -> Tensor:
        """Normalised latent (B, C, h, w) -> picture (B, 3, f*h, f*w)."""
        x = self.first(latent * self.std + self.mean)  # (B, c0, h, w)
        for level in self.levels:
            x = level(x)
        picture: Tensor = self.last(x)
        return picture
