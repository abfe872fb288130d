"""The reference of SnapGen's student: a U-Net of separable convolutions with transformer blocks at its lower levels.

Source: SnapGen, arXiv 2412.09619, section 3.1. It begins with SDXL's U-Net, made thinner (256, 512, 896 channels) and shorter
(0, 2, 4 transformer blocks), without self-attention above the lowest resolution, with expanded separable convolutions, a
smaller feed-forward layer, multi-query attention, and RMSNorm and rotary positions on q and k. Where the paper leaves a detail
open, this is SDXL's, or marked "our convention".

Shapes: latent (B, C, h, w); maps (B, C, H, W) with H = h / 2^level; tokens (B, N, C) with N = H*W; text (B, L, T).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.models.attention import attend, rope_table, rotate
from snapgen_deploy.models.student import Stage, Student, TrainingCost
from snapgen_deploy.models.text_projection import TextProjection, text_context
from snapgen_deploy.models.unet_config import ONLY_WIDTH, UNetConfig

Rope = tuple[Tensor, Tensor]
# How many maps of (cells, channels) a residual block keeps for its gradients, a transformer block beside its feed-forward
# layer's, and how many copies of its attention scores: counted in the forward pass.
_RESIDUAL_MAPS, _BLOCK_MAPS, _BLOCK_SCORES = 12, 14, 3


class SeparableConv(nn.Module):
    """A depthwise 3x3 convolution, which may halve both sides, and a pointwise one."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels_in, channels_in, 3, stride=stride, padding=1, groups=channels_in)
        self.pointwise = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H/stride, W/stride)."""
        y: Tensor = self.pointwise(self.depthwise(x))
        return y


class TimedBlock(nn.Module):
    """GroupNorm -> SiLU -> separable convolution -> + time -> GroupNorm -> SiLU -> separable convolution -> + ."""

    def __init__(self, channels_in: int, channels_out: int, config: UNetConfig) -> None:
        super().__init__()
        inner = channels_out * config.expansion
        self.norm1 = nn.GroupNorm(config.groups, channels_in, eps=1e-5)
        self.conv1 = SeparableConv(channels_in, inner)
        self.time = nn.Linear(config.time_width, inner)
        self.norm2 = nn.GroupNorm(config.groups, inner, eps=1e-5)
        self.conv2 = SeparableConv(inner, channels_out)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, in, H, W), time (B, E) -> (B, out, H, W)."""
        y = self.conv1(F.silu(self.norm1(x))) + self.time(time)[:, :, None, None]  # (B, out*expansion, H, W)
        out: Tensor = self.shortcut(x) + self.conv2(F.silu(self.norm2(y)))
        return out


class MultiQueryAttention(nn.Module):
    """All query heads read one key/value head; q and k pass RMSNorm, then rotary positions where there are any."""

    def __init__(self, channels: int, source: int, head_dim: int) -> None:
        """`source`: width of the tokens that keys and values are made of."""
        super().__init__()
        self.heads, self.head_dim = channels // head_dim, head_dim
        self.q = nn.Linear(channels, channels, bias=False)
        self.k = nn.Linear(source, head_dim, bias=False)
        self.v = nn.Linear(source, head_dim, bias=False)
        self.out = nn.Linear(channels, channels)
        self.q_norm = nn.RMSNorm(head_dim, eps=1e-6)
        self.k_norm = nn.RMSNorm(head_dim, eps=1e-6)

    def forward(self, x: Tensor, source: Tensor, bias: Tensor | None = None, rope: Rope | None = None) -> Tensor:
        """x (B, N, C), source (B, M, S), bias (B, 1, 1, M) added to the scores -> (B, N, C)."""
        q = self.q_norm(self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2))  # (B, h, N, d)
        k = self.k_norm(self.k(source))[:, None]  # (B, 1, M, d)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        mixed = attend(q, k, self.v(source)[:, None], bias)  # (B, h, N, d)
        merged: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return merged


class GatedFeedForward(nn.Module):
    """Two projections with a tanh-approximated GELU between them, whose result multiplies a third projection if `gated`."""

    def __init__(self, channels: int, ratio: int, gated: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(channels, channels * ratio)
        self.up = nn.Linear(channels, channels * ratio) if gated else None
        self.down = nn.Linear(channels * ratio, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        y = F.gelu(self.gate(x), approximate="tanh")  # (B, N, C*ratio)
        if self.up is not None:
            y = y * self.up(x)
        out: Tensor = self.down(y)
        return out


class UNetBlock(nn.Module):
    """LN -> self-attention (lowest resolution only) -> + ; LN -> cross-attention -> + ; LN -> FFN -> + ."""

    def __init__(self, channels: int, config: UNetConfig, self_attention: bool) -> None:
        super().__init__()
        own = MultiQueryAttention(channels, channels, config.head_dim) if self_attention else None
        self.attention_norm = nn.LayerNorm(channels, eps=1e-5) if self_attention else None
        self.attention = own
        self.cross_norm = nn.LayerNorm(channels, eps=1e-5)
        self.cross = MultiQueryAttention(channels, config.text_width, config.head_dim)
        self.ffn_norm = nn.LayerNorm(channels, eps=1e-5)
        self.ffn = GatedFeedForward(channels, config.ffn_ratio, config.ffn_gated)

    def forward(self, x: Tensor, text: Tensor, bias: Tensor, rope: Rope) -> Tensor:
        """x (B, N, C), text (B, L, T), bias (B, 1, 1, L) -> (B, N, C)."""
        if self.attention is not None and self.attention_norm is not None:
            y = self.attention_norm(x)
            x = x + self.attention(y, y, rope=rope)
        x = x + self.cross(self.cross_norm(x), text, bias)
        out: Tensor = x + self.ffn(self.ffn_norm(x))
        return out


class SpatialTransformer(nn.Module):
    """GroupNorm -> projection -> blocks over the map's cells -> projection -> + ."""

    def __init__(self, channels: int, depth: int, config: UNetConfig, self_attention: bool) -> None:
        super().__init__()
        self.head_dim, self.theta = config.head_dim, config.rope_theta
        self.norm = nn.GroupNorm(config.groups, channels, eps=1e-5)
        self.enter = nn.Linear(channels, channels)
        self.blocks = nn.ModuleList(UNetBlock(channels, config, self_attention) for _ in range(depth))
        self.leave = nn.Linear(channels, channels)

    def forward(self, x: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        """x (B, C, H, W), text (B, L, T), bias (B, 1, 1, L) -> (B, C, H, W)."""
        grid = (x.shape[2], x.shape[3])
        cos, sin = (table.to(x) for table in rope_table(*grid, self.head_dim, self.theta))
        y = self.enter(self.norm(x).flatten(2).transpose(1, 2))  # (B, N, C)
        for block in self.blocks:
            y = block(y, text, bias, (cos, sin))  # (B, N, C)
        out: Tensor = x + self.leave(y).transpose(1, 2).unflatten(2, grid)
        return out


class UNetLayer(nn.Module):
    """A residual block and, at levels that have some, transformer blocks."""

    def __init__(self, channels_in: int, level: int, config: UNetConfig) -> None:
        super().__init__()
        channels, depth = config.channels[level], config.blocks[level]
        self.residual = TimedBlock(channels_in, channels, config)
        own = config.has_self_attention(level)
        self.transformer = SpatialTransformer(channels, depth, config, own) if depth else None

    def forward(self, x: Tensor, time: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        """x (B, in, H, W), time (B, E), text (B, L, T), bias (B, 1, 1, L) -> (B, out, H, W)."""
        y: Tensor = self.residual(x, time)
        return y if self.transformer is None else self.transformer(y, text, bias)


class DownLevel(nn.Module):
    """Layers of one resolution, then (but for the lowest) a separable convolution that halves both sides."""

    def __init__(self, channels_in: int, level: int, config: UNetConfig) -> None:
        super().__init__()
        channels = config.channels[level]
        entering = [channels_in] + [channels] * (config.residuals - 1)
        self.layers = nn.ModuleList(UNetLayer(c, level, config) for c in entering)
        self.downsample = SeparableConv(channels, channels, stride=2) if level + 1 < len(config.channels) else None


class UpLevel(nn.Module):
    """Layers of one resolution, each on a skip beside its input, then (but for the highest) a 2x2 transposed convolution."""

    def __init__(self, channels_in: int, skips: list[int], level: int, config: UNetConfig) -> None:
        super().__init__()
        channels = config.channels[level]
        entering = [channels_in] + [channels] * config.residuals
        self.layers = nn.ModuleList(UNetLayer(c + s, level, config) for c, s in zip(entering, skips, strict=True))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2) if level else None


class NoiseLevelEmbedding(nn.Module):
    """An MLP on the features of the noise level; every residual block adds its own projection of the result."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """features (B, F) -> (B, E)."""
        return F.silu(self.fc2(F.silu(self.fc1(features))))


class UNet(Student):
    """The student: down through the levels, a middle at the lowest resolution, and up again with skips."""

    config: UNetConfig

    def __init__(self, config: UNetConfig, width: str = ONLY_WIDTH) -> None:
        super().__init__()
        self.config, self.width = config, width
        channels, levels = config.channels, len(config.channels)
        self.first = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.time = NoiseLevelEmbedding(config.time_features, config.time_width)
        self.text = nn.ModuleDict({s.name: TextProjection(s.dim, config.text_width) for s in config.text_streams})
        self.down, kept, current = nn.ModuleList(), [channels[0]], channels[0]
        for level in range(levels):
            self.down.append(DownLevel(current, level, config))
            current = channels[level]
            kept += [current] * (config.residuals + (level + 1 < levels))
        self.middle = UNetLayer(current, levels - 1, config)
        self.middle_end = TimedBlock(current, current, config)
        self.up = nn.ModuleList()
        for level in reversed(range(levels)):
            self.up.append(UpLevel(current, [kept.pop() for _ in range(config.residuals + 1)], level, config))
            current = channels[level]
        self.last_norm = nn.GroupNorm(config.groups, channels[0], eps=1e-5)
        self.last = nn.Conv2d(channels[0], config.latent_channels, 3, padding=1)

    def elastic_state(self) -> dict[str, Tensor]:
        """All tensors under their names in a checkpoint (without the component's prefix)."""
        return {name: tensor.detach() for name, tensor in self.named_parameters()}

    def down_levels(self) -> list[DownLevel]:
        """The levels in the order of the way down."""
        return [level for level in self.down if isinstance(level, DownLevel)]

    def up_levels(self) -> list[UpLevel]:
        """The levels in the order of the way up, the lowest first."""
        return [level for level in self.up if isinstance(level, UpLevel)]

    def layers(self) -> Iterator[tuple[int, UNetLayer]]:
        """Every layer with its level, in order; the middle's is one of them."""
        lowest = len(self.config.channels) - 1
        for level, down in enumerate(self.down_levels()):
            yield from ((level, layer) for layer in down.layers if isinstance(layer, UNetLayer))
        yield lowest, self.middle
        for below, up in enumerate(self.up_levels()):
            yield from ((lowest - below, layer) for layer in up.layers if isinstance(layer, UNetLayer))

    def training_cost(self, latent: tuple[int, int]) -> TrainingCost:
        """Cells of the latent, and estimated bytes that the gradients need of every level's layers."""
        c, stages = self.config, []
        text = sum(s.length for s in c.text_streams)
        for level, (channels, depth) in enumerate(zip(c.channels, c.blocks, strict=True)):
            cells = (latent[0] >> level) * (latent[1] >> level)
            layers = sum(1 for at, _ in self.layers() if at == level)
            seen = text + (cells if c.has_self_attention(level) else 0)
            block = (_BLOCK_MAPS + 4 * c.ffn_ratio) * channels * cells + _BLOCK_SCORES * channels // c.head_dim * cells * seen
            kept = _RESIDUAL_MAPS * c.expansion * channels * cells + depth * block
            stages.append(Stage(layers, 4 * layers * kept))
        return TrainingCost(latent[0] * latent[1], c.channels[0], tuple(stages))

    def recomputable(self) -> list[UNetLayer]:
        """All layers, in order."""
        return [layer for _, layer in self.layers()]

    def forward(self, latent: Tensor, features: Tensor, text: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Tensor:
        """latent (B, C, h, w), features (B, F), text and mask per stream -> velocity (B, C, h, w).

        Raises:
            ValueError: if the levels do not halve the latent, or the text streams are not the configuration's.
        """
        problems = self.config.latent_problems(*latent.shape[2:])
        if problems:
            raise ValueError(problems[0])
        time = self.time(features)  # (B, E)
        context, bias = text_context(self.text, self.config.text_streams, text, mask)  # (B, L, T), (B, 1, 1, L)

        x = self.first(latent)  # (B, C0, h, w)
        skips = [x]
        for level in self.down_levels():
            for layer in level.layers:
                x = layer(x, time, context, bias)  # (B, C, H, W)
                skips.append(x)
            if level.downsample is not None:
                x = level.downsample(x)  # (B, C, H/2, W/2)
                skips.append(x)

        x = self.middle_end(self.middle(x, time, context, bias), time)  # (B, C, H, W)

        for rising in self.up_levels():
            for layer in rising.layers:
                x = layer(torch.cat([x, skips.pop()], dim=1), time, context, bias)  # (B, C, H, W)
            if rising.upsample is not None:
                x = rising.upsample(x)  # (B, C, 2H, 2W)
        velocity: Tensor = self.last(F.silu(self.last_norm(x)))  # (B, C, h, w)
        return velocity
