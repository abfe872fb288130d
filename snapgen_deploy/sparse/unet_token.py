"""The U-Net's transformers in the token layout, for CPUs (XNNPACK, onnxruntime): tokens (B, N, C).

All query heads read one key/value head, so the queries of all heads are rows of one matrix: (B, N, h*d) is (B, N*h, d) without
moving a number, and attention needs no transposition but that of the keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snapgen_deploy.models.attention import MASKED
from snapgen_deploy.models.text_projection import TextProjection
from snapgen_deploy.models.unet import GatedFeedForward, MultiQueryAttention, SpatialTransformer, UNet, UNetBlock
from snapgen_deploy.sparse import fold
from snapgen_deploy.sparse.forms import dense
from snapgen_deploy.sparse.library_parts import NormParts, RotaryTable
from snapgen_deploy.sparse.library_token import RecognisedRMSNorm, norm_over_tokens
from snapgen_deploy.sparse.token_layers import GELUS, OpForm, TokenNorm
from snapgen_deploy.sparse.token_student import TokenText
from snapgen_deploy.sparse.unet_image import ImageUNet, WrittenUNetBlock, group_norm


def _layer_norm(source: nn.LayerNorm, batch: int, ops: OpForm) -> TokenNorm:
    return norm_over_tokens(NormParts(source.weight.detach(), source.bias.detach(), source.eps, centred=True), batch, ops)


class TokenHeadNorm(RecognisedRMSNorm):
    """RMSNorm of q and k."""

    def __init__(self, source: nn.RMSNorm, batch: int, ops: OpForm, scale: float = 1.0) -> None:
        assert source.eps is not None  # `models` always gives one
        super().__init__(batch, source.weight.shape[0], source.eps, ops, source.weight.detach() * scale)


class TokenMultiQuery(nn.Module):
    """`models.unet.MultiQueryAttention` with 1/sqrt(d) in the norm of q. Data movement: one transposition, of the keys."""

    def __init__(self, source: MultiQueryAttention, batch: int, ops: OpForm) -> None:
        super().__init__()
        self.dim, self.heads = source.head_dim, source.heads
        self.q, self.k, self.v, self.out = source.q, source.k, source.v, source.out
        self.q_norm = TokenHeadNorm(source.q_norm, batch, ops, source.head_dim**-0.5)
        self.k_norm = TokenHeadNorm(source.k_norm, batch, ops)

    def forward(self, x: Tensor, source: Tensor, bias: Tensor | None = None, rope: RotaryTable | None = None) -> Tensor:
        """x (B, N, C), source (B, M, S), bias (B, 1, M), rope: C and S (N, d) -> (B, N, C)."""
        batch, tokens, channels = x.shape
        q = self.q_norm(self.q(x).reshape(batch, tokens * self.heads, self.dim))  # (B, N*h, d)
        k = self.k_norm(self.k(source))  # (B, M, d)
        if rope is not None:
            q, k = self.turned(q, rope, tokens), self.turned(k, rope, tokens)
        mixed = dense(q, k.transpose(1, 2), self.v(source), bias)  # (B, N*h, d)
        merged: Tensor = self.out(mixed.reshape(batch, tokens, channels))
        return merged

    def turned(self, x: Tensor, rope: RotaryTable, tokens: int) -> Tensor:
        """Rotary positions of rows (B, N*h, d), h of them for each token."""
        half, heads = self.dim // 2, x.shape[1] // tokens
        swapped = torch.cat([x.narrow(2, half, half), x.narrow(2, 0, half)], dim=2)  # (B, N*h, d)
        if heads == 1:
            return x * rope[0] + swapped * rope[1]
        cos, sin = (table.reshape(1, tokens, 1, self.dim) for table in rope)
        x, swapped = (part.reshape(-1, tokens, heads, self.dim) for part in (x, swapped))
        return (x * cos + swapped * sin).reshape(-1, tokens * heads, self.dim)


class TokenGated(nn.Module):
    """`models.unet.GatedFeedForward`."""

    def __init__(self, source: GatedFeedForward, ops: OpForm) -> None:
        super().__init__()
        self.gate, self.up, self.down, self.gelu = source.gate, source.up, source.down, GELUS[ops]

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        y = self.gelu(self.gate(x))  # (B, N, C*ratio)
        out: Tensor = self.down(y if self.up is None else y * self.up(x))
        return out


class TokenUNetBlock(WrittenUNetBlock):
    """On x (B, N, C), text (B, L, T), bias (B, 1, L)."""

    def __init__(self, source: UNetBlock, batch: int, ops: OpForm) -> None:
        super().__init__()
        own, norm = source.attention, source.attention_norm
        self.attention = None if own is None else TokenMultiQuery(own, batch, ops)
        self.attention_norm = None if norm is None else _layer_norm(norm, batch, ops)
        self.cross_norm, self.ffn_norm = (_layer_norm(n, batch, ops) for n in (source.cross_norm, source.ffn_norm))
        self.cross, self.ffn = TokenMultiQuery(source.cross, batch, ops), TokenGated(source.ffn, ops)


class TokenTransformer(nn.Module):
    """`models.unet.SpatialTransformer`: a map becomes tokens after its first projection, and a map again before its last."""

    rope_c: Tensor
    rope_s: Tensor

    def __init__(self, source: SpatialTransformer, grid: tuple[int, int], batch: int, ops: OpForm) -> None:
        super().__init__()
        self.norm = group_norm(source.norm, ops == "native")
        self.enter, self.leave = (fold.pointwise(p.weight, p.bias) for p in (source.enter, source.leave))
        self.blocks = nn.ModuleList(TokenUNetBlock(b, batch, ops) for b in source.blocks if isinstance(b, UNetBlock))
        for part, table in zip("cs", fold.rope_constants(*grid, source.head_dim, source.theta), strict=True):
            self.register_buffer(f"rope_{part}", table)  # (N, d)

    def forward(self, x: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        """x (B, C, H, W), text (B, L, T), bias (B, 1, L) -> (B, C, H, W)."""
        batch, channels, rows, cols = x.shape
        # Contiguous, because a Linear on transposed tokens would come with an expansion that XNNPACK does not take.
        y = self.enter(self.norm(x)).reshape(batch, channels, rows * cols).transpose(1, 2).contiguous()  # (B, N, C)
        for block in self.blocks:
            y = block(y, text, bias, (self.rope_c, self.rope_s))  # (B, N, C)
        out: Tensor = x + self.leave(y.transpose(1, 2).reshape(batch, channels, rows, cols))
        return out


class TokenUNet(ImageUNet):
    """`models.UNet` at one latent size and batch."""

    def __init__(self, source: UNet, latent: tuple[int, int], batch: int, ops: OpForm) -> None:
        def written(part: nn.Module, level: int) -> nn.Module:
            assert isinstance(part, SpatialTransformer)
            return TokenTransformer(part, (latent[0] >> level, latent[1] >> level), batch, ops)

        super().__init__(source, ops == "native", written)
        self.batch = batch
        self.text = nn.ModuleList(TokenText(p, ops) for p in source.text.values() if isinstance(p, TextProjection))

    def context(self, streams: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, L_s, dim_s) and mask (B, L_s) in turn -> text (B, L, T), bias (B, 1, L)."""
        tokens = [project(x) for project, x in zip(self.text, streams[0::2], strict=True)]
        biases = [(mask - 1.0) * -MASKED for mask in streams[1::2]]  # (B, L_s)
        text, bias = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) for parts in (tokens, biases))
        return text, bias.reshape(self.batch, 1, -1)
