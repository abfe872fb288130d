"""The text encoder in both layouts; only the lookup of the embeddings may stay outside a delegate."""

from __future__ import annotations

from torch import Tensor, nn

from snapgen_deploy.models.attention import MASKED
from snapgen_deploy.models.text_encoder import TextBlock, TextEncoder
from snapgen_deploy.sparse import fold
from snapgen_deploy.sparse.channels_forms import ChannelsForm
from snapgen_deploy.sparse.channels_layers import ChannelsMLP, ChannelsNorm
from snapgen_deploy.sparse.forms import dense
from snapgen_deploy.sparse.geometry import Heads
from snapgen_deploy.sparse.token_layers import GELUS, OpForm, TokenNorm, merge_heads, split_heads


class TokenTextBlock(nn.Module):
    """`models.text_encoder.TextBlock` in the token layout."""

    def __init__(self, source: TextBlock, batch: int, ops: OpForm) -> None:
        super().__init__()
        self.batch, self.dim, self.gelu = batch, source.q.out_features // source.heads, GELUS[ops]
        self.norm1, self.norm2 = (token_norm(n, batch, ops) for n in (source.norm1, source.norm2))
        self.q, self.k, self.v, self.out = source.q, source.k, source.v, source.out
        self.up, self.down = source.up, source.down

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (B, L, D), bias (B*h, 1, L), or (1, 1, L) where B = 1 -> (B, L, D)."""
        y = self.norm1(x)
        q, k, v = (split_heads(p(y), self.dim) for p in (self.q, self.k, self.v))  # (B*h, L, d)
        x = x + self.out(merge_heads(dense(q * self.dim**-0.5, k.transpose(1, 2), v, bias), self.batch))
        out: Tensor = x + self.down(self.gelu(self.up(self.norm2(x))))
        return out


class TokenTextEncoder(nn.Module):
    """`models.TextEncoder` in the token layout, for the configured length."""

    positions: Tensor
    heads: Tensor

    def __init__(self, source: TextEncoder, batch: int, ops: OpForm) -> None:
        super().__init__()
        self.batch, self.tokens = batch, source.tokens
        self.register_buffer("positions", source.positions.detach())
        self.register_buffer("heads", source.positions.new_ones(1, source.config.heads, 1).detach())
        self.blocks = nn.ModuleList(TokenTextBlock(b, batch, ops) for b in source.blocks if isinstance(b, TextBlock))
        self.norm = token_norm(source.norm, batch, ops)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (B, L) int32, mask (B, L) with 1 = token -> embeddings (B, L, D)."""
        x = self.tokens(tokens) + self.positions  # (B, L, D)
        bias = ((mask - 1.0) * -MASKED).reshape(self.batch, 1, -1)  # (B, 1, L)
        if self.batch > 1:
            bias = (bias * self.heads).reshape(-1, 1, bias.shape[2])  # (B*h, 1, L)
        for block in self.blocks:
            x = block(x, bias)
        embeddings: Tensor = self.norm(x)
        return embeddings


class ChannelsTextBlock(nn.Module):
    """`models.text_encoder.TextBlock` in the channels layout."""

    def __init__(self, source: TextBlock, form: ChannelsForm) -> None:
        super().__init__()
        dim = source.q.out_features // source.heads
        self.heads, self.form = Heads(source.heads, source.heads, dim), form
        self.norm1, self.norm2 = channels_norm(source.norm1), channels_norm(source.norm2)
        self.q, self.k, self.v, self.out = (
            fold.pointwise(p.weight, p.bias) for p in (source.q, source.k, source.v, source.out)
        )
        self.mlp = ChannelsMLP(source.up, source.down)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (B, D, 1, L), bias (B, L, 1, 1) -> (B, D, 1, L)."""
        y = self.norm1(x)
        x = x + self.out(self.form.dense(self.q(y) * self.heads.dim**-0.5, self.k(y), self.v(y), self.heads, bias))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ChannelsTextEncoder(nn.Module):
    """`models.TextEncoder` in the channels layout, for the configured length."""

    positions: Tensor

    def __init__(self, source: TextEncoder, form: ChannelsForm) -> None:
        super().__init__()
        self.tokens = source.tokens
        self.register_buffer("positions", source.positions.detach())
        self.blocks = nn.ModuleList(ChannelsTextBlock(b, form) for b in source.blocks if isinstance(b, TextBlock))
        self.norm = channels_norm(source.norm)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (B, L) int32, mask (B, L) with 1 = token -> embeddings (B, L, D)."""
        x = self.tokens(tokens) + self.positions  # (B, L, D)
        batch, length, dim = x.shape
        x = x.transpose(1, 2).reshape(batch, dim, 1, length)  # (B, D, 1, L)
        bias = ((mask - 1.0) * -MASKED).reshape(batch, length, 1, 1)
        for block in self.blocks:
            x = block(x, bias)
        embeddings: Tensor = self.norm(x).reshape(batch, dim, length).transpose(1, 2)  # (B, L, D)
        return embeddings


def token_norm(source: nn.LayerNorm, batch: int, ops: OpForm) -> TokenNorm:
    """A LayerNorm over the last axis of (B, L, D)."""
    return TokenNorm(batch, source.normalized_shape[0], source.eps, ops, source.weight.detach(), source.bias.detach())


def channels_norm(source: nn.LayerNorm) -> ChannelsNorm:
    """A LayerNorm over the channels of (B, D, 1, L)."""
    return ChannelsNorm(1, source.eps, source.weight.detach().view(-1, 1, 1), source.bias.detach().view(-1, 1, 1))
