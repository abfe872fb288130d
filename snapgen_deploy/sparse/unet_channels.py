"""The U-Net's transformers in the channels layout, for the Neural Engine (Core ML): maps (B, C, H, W) throughout.

Projections are 1x1 convolutions. Only attention leaves the map: positions stay on the last axis, all query heads share the
keys, and the one transposition is that of the keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.models.attention import MASKED
from snapgen_deploy.models.text_projection import TextProjection
from snapgen_deploy.models.unet import GatedFeedForward, MultiQueryAttention, SpatialTransformer, UNet, UNetBlock
from snapgen_deploy.sparse import fold
from snapgen_deploy.sparse.channels_forms import rotated_channels
from snapgen_deploy.sparse.channels_layers import ChannelsMLP
from snapgen_deploy.sparse.library_parts import RotaryTable
from snapgen_deploy.sparse.unet_image import ImageUNet, WrittenUNetBlock, group_norm


class MapLayerNorm(nn.Module):
    """LayerNorm over one axis, written as coremltools recognises it: one operation of a package."""

    weight: Tensor
    bias: Tensor

    def __init__(self, source: nn.LayerNorm) -> None:
        super().__init__()
        self.eps = source.eps
        self.register_buffer("weight", source.weight.detach().view(1, -1, 1, 1))
        self.register_buffer("bias", source.bias.detach().view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        c = x - x.mean(1, keepdim=True)
        return c * (c * c).mean(1, keepdim=True).add(self.eps).rsqrt() * self.weight + self.bias


class MapHeadNorm(nn.Module):
    """RMSNorm over the channels of each head (B, h, d, N), times `scale`."""

    weight: Tensor

    def __init__(self, source: nn.RMSNorm, scale: float = 1.0) -> None:
        super().__init__()
        assert source.eps is not None  # `models` always gives one
        self.eps = source.eps
        self.register_buffer("weight", source.weight.detach().view(1, 1, -1, 1) * scale)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, d, N) -> (B, h, d, N)."""
        return x * (x * x).mean(2, keepdim=True).add(self.eps).rsqrt() * self.weight


class MapMultiQuery(nn.Module):
    """`models.unet.MultiQueryAttention`. Data movement: q, k and v to heads, k transposed, and the result to a map."""

    def __init__(self, source: MultiQueryAttention) -> None:
        super().__init__()
        self.dim, self.heads = source.head_dim, source.heads
        self.q, self.k, self.v, self.out = (
            fold.pointwise(p.weight, p.bias) for p in (source.q, source.k, source.v, source.out)
        )
        self.q_norm, self.k_norm = MapHeadNorm(source.q_norm, source.head_dim**-0.5), MapHeadNorm(source.k_norm)

    def forward(self, x: Tensor, source: Tensor, bias: Tensor | None = None, rope: RotaryTable | None = None) -> Tensor:
        """x (B, C, H, W), source (B, S, *, *) of M positions, bias (B, 1, M, 1), rope: C and S (d, N) -> (B, C, H, W)."""
        q, k, v = (self.heads_of(p(y)) for p, y in ((self.q, x), (self.k, source), (self.v, source)))
        q, k = self.q_norm(q), self.k_norm(k)  # (B, h, d, N), (B, 1, d, M)
        if rope is not None:
            q, k = rotated_channels(q, rope), rotated_channels(k, rope)
        scores = torch.matmul(k.transpose(2, 3), q)  # (B, h, M, N)
        if bias is not None:
            scores = scores + bias
        merged: Tensor = self.out(torch.matmul(v, scores.softmax(2)).reshape(x.shape))
        return merged

    def heads_of(self, x: Tensor) -> Tensor:
        """(B, h*d, *, *) -> (B, h, d, N)."""
        return x.reshape(x.shape[0], -1, self.dim, x.shape[2] * x.shape[3])


class MapGated(nn.Module):
    """`models.unet.GatedFeedForward`."""

    def __init__(self, source: GatedFeedForward) -> None:
        super().__init__()
        self.gate, self.down = (fold.pointwise(p.weight, p.bias) for p in (source.gate, source.down))
        self.up = None if source.up is None else fold.pointwise(source.up.weight, source.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        y = F.gelu(self.gate(x), approximate="tanh")  # (B, C*ratio, H, W)
        out: Tensor = self.down(y if self.up is None else y * self.up(x))
        return out


class MapUNetBlock(WrittenUNetBlock):
    """On x (B, C, H, W), text (B, T, 1, L), bias (B, 1, L, 1)."""

    def __init__(self, source: UNetBlock) -> None:
        super().__init__()
        own, norm = source.attention, source.attention_norm
        self.attention = None if own is None else MapMultiQuery(own)
        self.attention_norm = None if norm is None else MapLayerNorm(norm)
        self.cross_norm, self.ffn_norm = MapLayerNorm(source.cross_norm), MapLayerNorm(source.ffn_norm)
        self.cross, self.ffn = MapMultiQuery(source.cross), MapGated(source.ffn)


class MapTransformer(nn.Module):
    """`models.unet.SpatialTransformer`."""

    rope_c: Tensor
    rope_s: Tensor

    def __init__(self, source: SpatialTransformer, grid: tuple[int, int]) -> None:
        super().__init__()
        self.norm = group_norm(source.norm, native=False)
        self.enter, self.leave = (fold.pointwise(p.weight, p.bias) for p in (source.enter, source.leave))
        self.blocks = nn.ModuleList(MapUNetBlock(b) for b in source.blocks if isinstance(b, UNetBlock))
        for part, table in zip("cs", fold.rope_constants(*grid, source.head_dim, source.theta), strict=True):
            self.register_buffer(f"rope_{part}", table.t().contiguous())  # (d, N)

    def forward(self, x: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        """x (B, C, H, W), text (B, T, 1, L), bias (B, 1, L, 1) -> (B, C, H, W)."""
        y = self.enter(self.norm(x))  # (B, C, H, W)
        for block in self.blocks:
            y = block(y, text, bias, (self.rope_c, self.rope_s))  # (B, C, H, W)
        out: Tensor = x + self.leave(y)
        return out


class ChannelsUNet(ImageUNet):
    """`models.UNet` at one latent size; the batch is that of the example it is traced with."""

    def __init__(self, source: UNet, latent: tuple[int, int]) -> None:
        def written(part: nn.Module, level: int) -> nn.Module:
            assert isinstance(part, SpatialTransformer)
            return MapTransformer(part, (latent[0] >> level, latent[1] >> level))

        super().__init__(source, False, written)
        self.text = nn.ModuleList(ChannelsMLP(p.fc1, p.fc2) for p in source.text.values() if isinstance(p, TextProjection))

    def context(self, streams: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, L_s, dim_s) and mask (B, L_s) in turn -> text (B, T, 1, L), bias (B, 1, L, 1)."""
        tokens, biases = [], []
        for project, x, mask in zip(self.text, streams[0::2], streams[1::2], strict=True):
            batch, length, dim = x.shape
            tokens.append(project(x.transpose(1, 2).reshape(batch, dim, 1, length)))  # (B, T, 1, L_s)
            biases.append(((mask - 1.0) * -MASKED).reshape(batch, 1, length, 1))  # (B, 1, L_s, 1)
        if len(tokens) == 1:
            return tokens[0], biases[0]
        return torch.cat(tokens, dim=3), torch.cat(biases, dim=2)
