"""The student in the token layout: the same network as `models.DiT`, for CPUs (XNNPACK, onnxruntime)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.models.attention import MASKED, AdaptiveSparseSelfAttention
from snapgen_deploy.models.dit import DenseSkip, DiT, DiTBlock
from snapgen_deploy.models.dit_config import STAGES
from snapgen_deploy.models.text_projection import TextProjection
from snapgen_deploy.models.time_embedding import TimeEmbedding
from snapgen_deploy.sparse import fold
from snapgen_deploy.sparse.forms import Kernel
from snapgen_deploy.sparse.token_layers import (
    GELUS,
    Grid,
    OpForm,
    TokenCrossAttention,
    TokenFeedForward,
    TokenNorm,
    TokenSelfAttention,
    TokenSparseAttention,
)


class TokenBlock(nn.Module):
    """`models.dit.DiTBlock`; the modulation table carries the 1 of 1 + scale."""

    table: Tensor

    def __init__(self, source: DiTBlock, batch: int, ops: OpForm, grid: Grid, kernel: Kernel, keep_weights: bool) -> None:
        super().__init__()
        attention = source.attention
        self.register_buffer("table", fold.modulation_table(source.table, (1, 4)))
        self.norm = TokenNorm(batch, source.table.shape[1], 1e-6, ops)
        self.attention = (
            TokenSparseAttention(attention, batch, ops, grid, kernel, keep_weights)
            if isinstance(attention, AdaptiveSparseSelfAttention)
            else TokenSelfAttention(attention, batch, ops, keep_weights)
        )
        self.cross = TokenCrossAttention(source.cross, batch)
        self.ffn = TokenFeedForward(source.ffn, ops)

    def forward(self, x: Tensor, six: Tensor, text: Tensor, bias: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """x (B, N, D), six (B, 6, D), text (B, L, T), bias as in `TokenCrossAttention` -> (B, N, D)."""
        modulation = six + self.table  # (B, 6, D)
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation.narrow(1, i, 1) for i in range(6))  # (B, 1, D) each
        x = x + gate1 * self.attention(self.norm(x) * scale1 + shift1, rope)
        x = x + self.cross(x, text, bias)
        y: Tensor = x + gate2 * self.ffn(self.norm(x) * scale2 + shift2)
        return y


class TokenTime(nn.Module):
    """`models.dit.TimeEmbedding`."""

    def __init__(self, source: TimeEmbedding) -> None:
        super().__init__()
        self.fc1, self.fc2, self.six, self.pooled = source.fc1, source.fc2, source.six, source.pooled

    def forward(self, features: Tensor, pooled: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """features (B, F), pooled (B, P_s) each -> embedding (B, 1, D), modulation (B, 6, D)."""
        t = self.fc2(F.silu(self.fc1(features)))  # (B, D)
        if self.pooled is not None:
            t = t + self.pooled(_joined(list(pooled)))
        return t.reshape(t.shape[0], 1, -1), self.six(F.silu(t)).reshape(t.shape[0], 6, -1)


class TokenText(nn.Module):
    """`models.TextProjection`."""

    def __init__(self, source: TextProjection, ops: OpForm) -> None:
        super().__init__()
        self.fc1, self.fc2, self.gelu = source.fc1, source.fc2, GELUS[ops]

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, dim) -> (B, L, T)."""
        y: Tensor = self.fc2(self.gelu(self.fc1(x)))
        return y


class TokenSkip(nn.Module):
    """`models.dit.DenseSkip`."""

    def __init__(self, source: DenseSkip) -> None:
        super().__init__()
        self.x, self.skip = source.x, source.skip

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Both (B, N, D) -> (B, N, D)."""
        y: Tensor = self.x(x) + self.skip(skip)
        return y


class TokenPatch(nn.Module):
    """The p x p, stride-p patch convolution as a Linear over the pixels of a patch, ordered (channel, row, column)."""

    def __init__(self, source: nn.Conv2d, grid: Grid) -> None:
        super().__init__()
        self.grid, self.patch = grid, source.kernel_size[0]
        self.project = fold.linear_around(source.weight.reshape(source.out_channels, -1), source.bias)

    def forward(self, latent: Tensor) -> Tensor:
        """latent (B, C, p*H, p*W) -> (B, H*W, D)."""
        (rows, cols), p, (batch, channels, _, width) = self.grid, self.patch, latent.shape
        x = latent.reshape(batch, channels, rows, p * width).transpose(1, 2)  # (B, H, C, p*p*W)
        x = x.reshape(batch * rows, channels * p, cols, p).transpose(1, 2)  # (B*H, W, C*p, p)
        y: Tensor = self.project(x.reshape(batch, rows * cols, channels * p * p))  # (B, N, D)
        return y


class TokenUnpatch(nn.Module):
    """A Linear to the pixels of a patch, ordered (channel, row, column), and the latent that they make."""

    def __init__(self, project: nn.Linear, patch: int, grid: Grid) -> None:
        super().__init__()
        self.grid, self.patch, self.channels, self.project = grid, patch, project.out_features // patch**2, project

    @classmethod
    def of(cls, source: nn.ConvTranspose2d, grid: Grid) -> TokenUnpatch:
        """The p x p, stride-p transposed convolution to the latent."""
        weight = source.weight.detach().permute(1, 2, 3, 0).reshape(-1, source.in_channels)  # (C*p*p, D)
        assert source.bias is not None  # `models` always builds it with one
        patch = source.kernel_size[0]
        return cls(fold.linear_around(weight, source.bias.repeat_interleave(patch**2)), patch, grid)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H*W, D) -> (B, C, p*H, p*W)."""
        (rows, cols), p, batch = self.grid, self.patch, x.shape[0]
        y: Tensor = self.project(x).reshape(batch * rows, cols, self.channels * p, p).transpose(1, 2)  # (B*H, C*p, W, p)
        y = y.reshape(batch, rows, self.channels, p * cols * p).transpose(1, 2)  # (B, C, H, p*W*p)
        return y.reshape(batch, self.channels, rows * p, cols * p)


class TokenDownsample(nn.Module):
    """The 2x2, stride-2 convolution between Down and Middle as a Linear over four neighbouring tokens."""

    def __init__(self, source: nn.Conv2d, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.project = fold.linear_around(source.weight.permute(0, 2, 3, 1).reshape(source.out_channels, -1), source.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H*W, D) -> (B, H/2*W/2, D)."""
        (rows, cols), (batch, tokens, dim) = self.grid, x.shape
        x = x.reshape(batch * rows // 2, 2, cols // 2, 2 * dim).transpose(1, 2)  # (B*H/2, W/2, 2, 2D)
        y: Tensor = self.project(x.reshape(batch, tokens // 4, 4 * dim))  # (B, N/4, D)
        return y


class TokenUpsample(nn.Module):
    """The 2x2, stride-2 transposed convolution between Middle and Up as a Linear to four neighbouring tokens."""

    def __init__(self, source: nn.ConvTranspose2d, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        weight = source.weight.detach().permute(2, 3, 1, 0).reshape(-1, source.in_channels)  # (4*D, D)
        assert source.bias is not None  # `models` always builds it with one
        self.project = fold.linear_around(weight, source.bias.repeat(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H/2*W/2, D) -> (B, H*W, D)."""
        (rows, cols), (batch, tokens, dim) = self.grid, x.shape
        y: Tensor = self.project(x).reshape(batch * rows // 2, cols // 2, 2, 2 * dim).transpose(1, 2)  # (B*H/2, 2, W/2, 2D)
        return y.reshape(batch, 4 * tokens, dim)


class TokenStudent(nn.Module):
    """`models.DiT` at one latent size and batch. No mask over image tokens, no gather, rank <= 4 throughout."""

    rope_c: Tensor
    rope_s: Tensor
    half_rope_c: Tensor
    half_rope_s: Tensor
    final_table: Tensor
    positions: Tensor
    heads: Tensor

    def __init__(self, dit: DiT, grid: Grid, kernel: Kernel, batch: int, ops: OpForm, keep_weights: bool = False) -> None:
        super().__init__()
        config, half = dit.config, (grid[0] // 2, grid[1] // 2)
        self.batch = batch
        self.patch, self.unpatch = TokenPatch(dit.patch, grid), TokenUnpatch.of(dit.unpatch, grid)
        self.downsample, self.upsample = TokenDownsample(dit.downsample, grid), TokenUpsample(dit.upsample, grid)
        self.time = TokenTime(dit.time)
        self.text = nn.ModuleList(TokenText(_projection(dit, s.name), ops) for s in config.text_streams)
        for stage in STAGES:
            at = half if stage == "middle" else grid
            blocks = (TokenBlock(b, batch, ops, at, kernel, keep_weights) for b in dit.blocks_of(stage))
            self.add_module(stage, nn.ModuleList(blocks))
        self.skips = nn.ModuleList(TokenSkip(s) for s in dit.skips if isinstance(s, DenseSkip))
        for name, at in (("rope", grid), ("half_rope", half)):
            for part, table in zip("cs", fold.rope_constants(*at, config.head_dim, config.rope_theta), strict=True):
                self.register_buffer(f"{name}_{part}", table)
        self.register_buffer("final_table", fold.modulation_table(dit.final_table, (1,)))
        self.register_buffer("positions", fold.position_constants(dit, grid)[None])  # (1, N, D)
        self.final_norm = TokenNorm(batch, config.hidden_at(dit.width), 1e-6, ops)
        self.register_buffer("heads", dit.final_table.new_ones(1, config.cross_dim // config.head_dim, 1).detach())

    def context(self, streams: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, L_s, dim_s) and mask (B, L_s) in turn -> text (B, L, T), bias (B*h, 1, L) or (1, 1, L)."""
        tokens = [project(x) for project, x in zip(self.text, streams[0::2], strict=True)]
        biases = [(mask - 1.0) * -MASKED for mask in streams[1::2]]  # (B, L_s)
        text, bias = _joined(tokens), _joined(biases)
        bias = bias.reshape(self.batch, 1, -1)  # (B, 1, L)
        if self.batch > 1:
            bias = (bias * self.heads).reshape(-1, 1, bias.shape[2])  # (B*h, 1, L)
        return text, bias

    def forward(self, latent: Tensor, time_features: Tensor, *streams: Tensor) -> Tensor:
        """latent (B, C, h, w), time_features (B, F), per text stream (B, L_s, dim_s) and mask (B, L_s), pooled (B, P_s)."""
        rope, half_rope = (self.rope_c, self.rope_s), (self.half_rope_c, self.half_rope_s)
        texts = 2 * len(self.text)
        embedding, six = self.time(time_features, streams[texts:])  # (B, 1, D), (B, 6, D)
        text, bias = self.context(streams[:texts])

        x = self.patch(latent) + self.positions  # (B, N, D)
        for block in self.get_submodule("down").children():
            x = block(x, six, text, bias, rope)  # (B, N, D)

        x = self.downsample(x)  # (B, N/4, D)
        middle = list(self.get_submodule("middle").children())
        kept: list[Tensor] = []
        for i, block in enumerate(middle):
            mirror = i - (len(middle) - len(self.skips))
            if mirror >= 0:
                x = self.skips[mirror](x, kept.pop())  # (B, N/4, D)
            x = block(x, six, text, bias, half_rope)  # (B, N/4, D)
            if i < len(self.skips):
                kept.append(x)
        x = self.upsample(x)  # (B, N, D)

        for block in self.get_submodule("up").children():
            x = block(x, six, text, bias, rope)  # (B, N, D)
        final = embedding + self.final_table  # (B, 2, D)
        x = self.final_norm(x) * final.narrow(1, 1, 1) + final.narrow(1, 0, 1)  # (B, N, D)
        velocity: Tensor = self.unpatch(x)  # (B, C, h, w)
        return velocity


def _projection(dit: DiT, stream: str) -> TextProjection:
    """The projection of one text stream."""
    found = dit.text[stream]
    assert isinstance(found, TextProjection)
    return found


def _joined(parts: list[Tensor]) -> Tensor:
    """Concatenation along tokens that leaves no one-part `cat` in the graph."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
