"""What is the same of the U-Net in both layouts: maps (B, C, H, W) from the latent to the velocity, and a block's order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from snapgen_deploy.models.unet import DownLevel, NoiseLevelEmbedding, SeparableConv, TimedBlock, UNet, UNetLayer, UpLevel
from snapgen_deploy.sparse import fold
from snapgen_deploy.sparse.decoder import ImageGroupNorm, LongGroupNorm
from snapgen_deploy.sparse.image_layers import Swish
from snapgen_deploy.sparse.library_parts import RotaryTable

# The map's transformer blocks and its level: (B, C, H, W), text, its bias -> (B, C, H, W).
Written = Callable[[nn.Module, int], nn.Module]


def group_norm(source: nn.GroupNorm, native: bool) -> nn.Module:
    """A GroupNorm as one operation where its groups are small enough for it, or in means and a grouped convolution."""
    return LongGroupNorm(source) if native else ImageGroupNorm(source)


class WrittenUNetBlock(nn.Module):
    """`models.unet.UNetBlock` in the order of its parts, which a layout makes; self-attention and its norm may be None."""

    attention: nn.Module | None
    attention_norm: nn.Module | None
    cross: nn.Module
    cross_norm: nn.Module
    ffn: nn.Module
    ffn_norm: nn.Module

    def forward(self, x: Tensor, text: Tensor, bias: Tensor, rope: RotaryTable) -> Tensor:
        """x, text and bias as the layout has them -> the shape of x."""
        if self.attention is not None and self.attention_norm is not None:
            y = self.attention_norm(x)
            x = x + self.attention(y, y, rope=rope)
        x = x + self.cross(self.cross_norm(x), text, bias)
        out: Tensor = x + self.ffn(self.ffn_norm(x))
        return out


class ImageSeparable(nn.Module):
    """`models.unet.SeparableConv`."""

    def __init__(self, source: SeparableConv) -> None:
        super().__init__()
        self.depthwise, self.pointwise = source.depthwise, source.pointwise

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H/stride, W/stride)."""
        y: Tensor = self.pointwise(self.depthwise(x))
        return y


class ImageTimedBlock(nn.Module):
    """`models.unet.TimedBlock`; the noise level's embedding is a map of one cell."""

    def __init__(self, source: TimedBlock, native: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = group_norm(source.norm1, native), group_norm(source.norm2, native)
        self.conv1, self.conv2 = ImageSeparable(source.conv1), ImageSeparable(source.conv2)
        self.time = fold.pointwise(source.time.weight, source.time.bias)
        self.shortcut, self.swish = source.shortcut, Swish()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, in, H, W), time (B, E, 1, 1) -> (B, out, H, W)."""
        y = self.conv1(self.swish(self.norm1(x))) + self.time(time)  # (B, out*expansion, H, W)
        out: Tensor = self.shortcut(x) + self.conv2(self.swish(self.norm2(y)))
        return out


class ImageLayer(nn.Module):
    """`models.unet.UNetLayer`."""

    def __init__(self, source: UNetLayer, level: int, native: bool, written: Written) -> None:
        super().__init__()
        self.residual = ImageTimedBlock(source.residual, native)
        self.transformer = None if source.transformer is None else written(source.transformer, level)

    def forward(self, x: Tensor, time: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        """x (B, in, H, W), time (B, E, 1, 1), text and bias as the transformer takes them -> (B, out, H, W)."""
        y: Tensor = self.residual(x, time)
        return y if self.transformer is None else self.transformer(y, text, bias)


class ImageTime(nn.Module):
    """`models.unet.NoiseLevelEmbedding` on a map of one cell."""

    def __init__(self, source: NoiseLevelEmbedding) -> None:
        super().__init__()
        self.fc1, self.fc2 = (fold.pointwise(p.weight, p.bias) for p in (source.fc1, source.fc2))
        self.swish = Swish()

    def forward(self, features: Tensor) -> Tensor:
        """features (B, F) -> (B, E, 1, 1)."""
        y: Tensor = self.swish(self.fc2(self.swish(self.fc1(features.reshape(*features.shape, 1, 1)))))
        return y


class ImageUNet(nn.Module):
    """`models.UNet` at one latent size; a subclass gives the text's layout, and `written` the transformers.

    Each level is a list of layers, then what changes the resolution.
    """

    def __init__(self, source: UNet, native: bool, written: Written) -> None:
        super().__init__()
        lowest = len(source.config.channels) - 1
        self.first, self.last = source.first, source.last
        self.last_norm, self.swish = group_norm(source.last_norm, native), Swish()
        self.time = ImageTime(source.time)

        def layers(part: DownLevel | UpLevel, level: int) -> nn.ModuleList:
            found = (layer for layer in part.layers if isinstance(layer, UNetLayer))
            return nn.ModuleList(ImageLayer(layer, level, native, written) for layer in found)

        self.down, self.halvings = nn.ModuleList(), nn.ModuleList()
        for level, down in enumerate(source.down_levels()):
            self.down.append(layers(down, level))
            if down.downsample is not None:
                self.halvings.append(ImageSeparable(down.downsample))
        self.middle = ImageLayer(source.middle, lowest, native, written)
        self.middle_end = ImageTimedBlock(source.middle_end, native)
        self.up, self.doublings = nn.ModuleList(), nn.ModuleList()
        for below, up in enumerate(source.up_levels()):
            self.up.append(layers(up, lowest - below))
            if up.upsample is not None:
                self.doublings.append(up.upsample)

    def context(self, streams: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, L_s, dim_s) and mask (B, L_s) in turn -> text and bias as the transformers take them."""
        raise NotImplementedError

    def forward(self, latent: Tensor, time_features: Tensor, *streams: Tensor) -> Tensor:
        """latent (B, C, h, w), time_features (B, F), then per text stream (B, L_s, dim_s) and mask (B, L_s)."""
        time = self.time(time_features)  # (B, E, 1, 1)
        text, bias = self.context(streams)
        x = self.first(latent)  # (B, C0, h, w)
        skips = [x]
        for level, layers in enumerate(self.down):
            for layer in layers.children():
                x = layer(x, time, text, bias)  # (B, C, H, W)
                skips.append(x)
            if level < len(self.halvings):
                x = self.halvings[level](x)  # (B, C, H/2, W/2)
                skips.append(x)
        x = self.middle_end(self.middle(x, time, text, bias), time)  # (B, C, H, W)
        for below, layers in enumerate(self.up):
            for layer in layers.children():
                x = layer(torch.cat([x, skips.pop()], dim=1), time, text, bias)  # (B, C, H, W)
            if below < len(self.doublings):
                x = self.doublings[below](x)  # (B, C, 2H, 2W)
        velocity: Tensor = self.last(self.swish(self.last_norm(x)))  # (B, C, h, w)
        return velocity
