"""The student in the channels layout: the same network as `models.DiT`, for the Neural Engine (Core ML)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.models.attention import MASKED, AdaptiveSparseSelfAttention
from snapgen_deploy.models.dit import DenseSkip, DiT, DiTBlock
from snapgen_deploy.models.dit_config import STAGES
from snapgen_deploy.models.text_projection import TextProjection
from snapgen_deploy.models.time_embedding import PooledProjection, TimeEmbedding
from snapgen_deploy.sparse import fold
from snapgen_deploy.sparse.channels_forms import ChannelsForm, equal_parts
from snapgen_deploy.sparse.channels_layers import (
    ChannelsCrossAttention,
    ChannelsMLP,
    ChannelsNorm,
    ChannelsSelfAttention,
    ChannelsSparseAttention,
    MapGrid,
)


class ChannelsBlock(nn.Module):
    """`models.dit.DiTBlock`; the modulation table carries the 1 of 1 + scale."""

    table: Tensor

    def __init__(self, source: DiTBlock, form: ChannelsForm, grid: MapGrid, keep_weights: bool) -> None:
        super().__init__()
        attention = source.attention
        self.hidden = source.table.shape[1]
        self.register_buffer("table", fold.modulation_table(source.table, (1, 4)).view(1, -1, 1, 1))
        self.norm = ChannelsNorm(1, 1e-6)
        self.attention = (
            ChannelsSparseAttention(attention, form, grid, keep_weights)
            if isinstance(attention, AdaptiveSparseSelfAttention)
            else ChannelsSelfAttention(attention, form, keep_weights)
        )
        self.cross = ChannelsCrossAttention(source.cross, form)
        self.ffn = ChannelsMLP(source.ffn.up, source.ffn.down)

    def forward(self, x: Tensor, six: Tensor, text: Tensor, bias: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """x (B, D, 1, N), six (B, 6*D, 1, 1), text (B, T, 1, L), bias (B, L, 1, 1) -> (B, D, 1, N)."""
        modulation = six + self.table  # (B, 6*D, 1, 1)
        shift1, scale1, gate1, shift2, scale2, gate2 = equal_parts(modulation, self.hidden, 1)  # (B, D, 1, 1) each
        x = x + gate1 * self.attention(self.norm(x) * scale1 + shift1, rope)
        x = x + self.cross(x, text, bias)
        y: Tensor = x + gate2 * self.ffn(self.norm(x) * scale2 + shift2)
        return y


class ChannelsTime(nn.Module):
    """`models.dit.TimeEmbedding`."""

    def __init__(self, source: TimeEmbedding) -> None:
        super().__init__()
        self.fc1, self.fc2, self.six = (fold.pointwise(p.weight, p.bias) for p in (source.fc1, source.fc2, source.six))
        self.pooled = None if source.pooled is None else ChannelsPooled(source.pooled)

    def forward(self, features: Tensor, pooled: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """features (B, F), pooled (B, P_s) each -> embedding (B, D, 1, 1), modulation (B, 6*D, 1, 1)."""
        t = self.fc2(F.silu(self.fc1(features.reshape(*features.shape, 1, 1))))  # (B, D, 1, 1)
        if self.pooled is not None:
            t = t + self.pooled(pooled)
        return t, self.six(F.silu(t))


class ChannelsPooled(nn.Module):
    """`models.time_embedding.PooledProjection`."""

    def __init__(self, source: PooledProjection) -> None:
        super().__init__()
        self.fc1, self.fc2 = (fold.pointwise(p.weight, p.bias) for p in (source.fc1, source.fc2))

    def forward(self, pooled: tuple[Tensor, ...]) -> Tensor:
        """(B, P_s) each -> (B, D, 1, 1)."""
        x = pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1)  # (B, P)
        y: Tensor = self.fc2(F.silu(self.fc1(x.reshape(*x.shape, 1, 1))))
        return y


class ChannelsSkip(nn.Module):
    """`models.dit.DenseSkip`."""

    def __init__(self, source: DenseSkip) -> None:
        super().__init__()
        self.x, self.skip = fold.pointwise(source.x.weight, source.x.bias), fold.pointwise(source.skip.weight, None)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Both (B, D, 1, N) -> (B, D, 1, N)."""
        y: Tensor = self.x(x) + self.skip(skip)
        return y


class ChannelsStudent(nn.Module):
    """`models.DiT` at one latent size. The batch is that of the example it is traced with; rank <= 4 throughout.

    Outside the blocks: 6 reshapes between maps and tokens (patch, down twice, up twice, unpatch), and per text stream one
    transpose and two reshapes.
    """

    rope_c: Tensor
    rope_s: Tensor
    half_rope_c: Tensor
    half_rope_s: Tensor
    final_table: Tensor
    positions: Tensor

    def __init__(self, dit: DiT, grid: MapGrid, form: ChannelsForm, keep_weights: bool = False) -> None:
        super().__init__()
        config, half = dit.config, (grid[0] // 2, grid[1] // 2)
        self.fine, self.coarse, self.hidden = grid, half, config.hidden_at(dit.width)
        self.patch, self.unpatch, self.downsample, self.upsample = dit.patch, dit.unpatch, dit.downsample, dit.upsample
        self.time = ChannelsTime(dit.time)
        self.text = nn.ModuleList()
        for stream in config.text_streams:
            projection = dit.text[stream.name]
            assert isinstance(projection, TextProjection)
            self.text.append(ChannelsMLP(projection.fc1, projection.fc2))
        for stage in STAGES:
            at = half if stage == "middle" else grid
            blocks = (ChannelsBlock(b, form, at, keep_weights) for b in dit.blocks_of(stage))
            self.add_module(stage, nn.ModuleList(blocks))
        self.skips = nn.ModuleList(ChannelsSkip(s) for s in dit.skips if isinstance(s, DenseSkip))
        for name, at in (("rope", grid), ("half_rope", half)):
            for part, table in zip("cs", fold.rope_constants(*at, config.head_dim, config.rope_theta), strict=True):
                self.register_buffer(f"{name}_{part}", table.t().contiguous())  # (d, N)
        self.register_buffer("final_table", fold.modulation_table(dit.final_table, (1,)))
        self.register_buffer("positions", fold.position_constants(dit, grid).t()[None, :, None].contiguous())  # (1, D, 1, N)
        self.final_norm = ChannelsNorm(1, 1e-6)

    def context(self, streams: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, L_s, dim_s) and mask (B, L_s) in turn -> text (B, T, 1, L), bias (B, L, 1, 1)."""
        tokens, biases = [], []
        for project, x, mask in zip(self.text, streams[0::2], streams[1::2], strict=True):
            batch, length, dim = x.shape
            tokens.append(project(x.transpose(1, 2).reshape(batch, dim, 1, length)))  # (B, T, 1, L_s)
            biases.append(((mask - 1.0) * -MASKED).reshape(batch, length, 1, 1))  # (B, L_s, 1, 1)
        if len(tokens) == 1:
            return tokens[0], biases[0]
        return torch.cat(tokens, dim=3), torch.cat(biases, dim=1)

    def forward(self, latent: Tensor, time_features: Tensor, *streams: Tensor) -> Tensor:
        """latent (B, C, h, w), time_features (B, F), per text stream (B, L_s, dim_s) and mask (B, L_s), pooled (B, P_s)."""
        rope, half_rope = (self.rope_c, self.rope_s), (self.half_rope_c, self.half_rope_s)
        texts = 2 * len(self.text)
        embedding, six = self.time(time_features, streams[texts:])  # (B, D, 1, 1), (B, 6*D, 1, 1)
        text, bias = self.context(streams[:texts])
        line = (latent.shape[0], self.hidden, 1, -1)

        x = self.patch(latent).reshape(line) + self.positions  # (B, D, 1, N)
        for block in self.get_submodule("down").children():
            x = block(x, six, text, bias, rope)  # (B, D, 1, N)

        x = self.downsample(x.reshape(*line[:2], *self.fine)).reshape(line)  # (B, D, 1, N/4)
        middle = list(self.get_submodule("middle").children())
        kept: list[Tensor] = []
        for i, block in enumerate(middle):
            mirror = i - (len(middle) - len(self.skips))
            if mirror >= 0:
                x = self.skips[mirror](x, kept.pop())  # (B, D, 1, N/4)
            x = block(x, six, text, bias, half_rope)  # (B, D, 1, N/4)
            if i < len(self.skips):
                kept.append(x)
        x = self.upsample(x.reshape(*line[:2], *self.coarse)).reshape(line)  # (B, D, 1, N)

        for block in self.get_submodule("up").children():
            x = block(x, six, text, bias, rope)  # (B, D, 1, N)
        shift, scale = (embedding + self.final_table.narrow(0, i, 1).reshape(1, -1, 1, 1) for i in range(2))
        x = self.final_norm(x) * scale + shift  # (B, D, 1, N)
        velocity: Tensor = self.unpatch(x.reshape(*line[:2], *self.fine))  # (B, C, h, w)
        return velocity
