"""The student in a form that trains quickly on a CPU: the mathematics of `models.DiT` with other operations.

One worker per width holds a bfloat16 copy of that width's weights; gradients are added to the fp32 supernetwork. Blocks are
compiled, query heads of a group are folded into rows instead of repeating keys, the local branch is one masked product, and
2x2 convolutions of stride 2 are matrix products. The tests compare it with the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.models import DiT, DiTConfig, ElasticDiT, elastic_name
from snapgen_deploy.models.attention import AdaptiveSparseSelfAttention, position_table, rope_table
from snapgen_deploy.models.dit import DiTBlock, modulate

Grid = tuple[int, int]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Like `attention.attend`; q (B, h, N, d), k and v (B, h/g, M, d), bias (g*N, M) or (B, 1, 1, M)."""
    batch, heads, tokens, dim = q.shape
    kv, keys = k.shape[1], k.shape[2]
    rows = (q * dim**-0.5).reshape(batch * kv, heads // kv * tokens, dim)  # (B*h_kv, g*N, d)
    scores = torch.bmm(rows, k.reshape(batch * kv, keys, dim).transpose(1, 2))  # (B*h_kv, g*N, M)
    if bias is not None:
        scores = (scores.view(batch, kv, -1, keys) + bias).view(scores.shape)
    return torch.bmm(scores.softmax(-1), v.reshape(batch * kv, keys, dim)).view(batch, heads, tokens, dim)


def local_attention(q: Tensor, k: Tensor, v: Tensor, blocks: int, radius: int) -> Tensor:
    """The local branch as a masked product of all tokens with all tokens."""
    number = torch.arange(q.shape[2]) // (q.shape[2] // blocks)
    bias = torch.where((number[:, None] - number[None, :]).abs() <= radius, 0.0, -1e4).to(q.dtype)
    return attend(q, k, v, bias.repeat(q.shape[1] // k.shape[1], 1))


def halve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 2x2 convolution of stride 2; (B, C, H, W) -> (B, C', H/2, W/2)."""
    b, c, h, w = x.shape
    cells = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, c * 4)
    y = F.linear(cells, conv.weight.reshape(conv.out_channels, -1), conv.bias)
    return y.view(b, h // 2, w // 2, -1).permute(0, 3, 1, 2)


def double(conv: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A 2x2 transposed convolution of stride 2; (B, C, H, W) -> (B, C', 2H, 2W)."""
    b, c, h, w = x.shape
    cells = (x.permute(0, 2, 3, 1).reshape(-1, c) @ conv.weight.reshape(c, -1)).view(b, h, w, -1, 2, 2)
    y = cells.permute(0, 3, 1, 4, 2, 5).reshape(b, -1, 2 * h, 2 * w)
    return y if conv.bias is None else y + conv.bias.view(1, -1, 1, 1)


def compress(conv: nn.Conv2d, x: Tensor, grid: Grid) -> Tensor:
    """The depthwise 2x2 convolution of ASSA as a weighted sum; (B, h, H*W, d) -> (B, h, H/2*W/2, d)."""
    b, h, _, d = x.shape
    cells = x.view(b, h, grid[0] // 2, 2, grid[1] // 2, 2, d)
    weight = conv.weight.view(h, 1, 1, d, 2, 2)
    y = cells[:, :, :, 0, :, 0] * weight[..., 0, 0] + cells[:, :, :, 0, :, 1] * weight[..., 0, 1]
    y = y + cells[:, :, :, 1, :, 0] * weight[..., 1, 0] + cells[:, :, :, 1, :, 1] * weight[..., 1, 1]
    return (y if conv.bias is None else y + conv.bias.view(h, 1, 1, d)).reshape(b, h, -1, d)


class FastBlock(nn.Module):
    """`Block.forward` in the fast operations, for one grid."""

    def __init__(self, block: DiTBlock, rope: tuple[Tensor, Tensor], grid: Grid) -> None:
        super().__init__()
        self.block, self.grid = block, grid
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", rope[0])
        self.register_buffer("sin", rope[1])

    def forward(self, x: Tensor, six: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        """x (B, N, D), six (B, 6, D), text (B, L, T), bias (B, 1, 1, L) -> (B, N, D)."""
        block, own, cross = self.block, self.block.attention, self.block.cross
        shift1, scale1, gate1, shift2, scale2, gate2 = (block.table + six).split(1, dim=1)
        y = modulate(x, shift1, scale1)
        q, k, v = own.project(y, (self.cos, self.sin))
        if isinstance(own, AdaptiveSparseSelfAttention):
            far = attend(q, compress(own.k_compress, k, self.grid), compress(own.v_compress, v, self.grid))
            near = local_attention(q, k, v, own.blocks, own.radius)
            g = own.gate(y).sigmoid().transpose(1, 2)[..., None]
            x = x + gate1 * own.merge(near + g * (far - near))
        else:
            x = x + gate1 * own.merge(attend(q, k, v))
        q, k, v = (
            part(t).unflatten(2, (cross.heads, -1)).transpose(1, 2)
            for part, t in ((cross.q, x), (cross.k, text), (cross.v, text))
        )
        x = x + cross.out(attend(q, k, v, bias).transpose(1, 2).flatten(2))
        out: Tensor = x + gate2 * block.ffn(modulate(x, shift2, scale2))
        return out


class FastDiT(nn.Module):
    """`DiT.forward` for one width and one latent size, built from fast blocks."""

    def __init__(self, config: DiTConfig, width: str, latent: Grid) -> None:
        super().__init__()
        self.net = DiT(config, width)
        self.grid = config.grid(*latent)
        self.coarse = (self.grid[0] // 2, self.grid[1] // 2)
        ropes = {g: rope_table(*g, config.head_dim, config.rope_theta) for g in (self.grid, self.coarse)}
        self.positions: Tensor
        table = position_table(*self.grid, config.hidden, config.hidden_at(width))
        self.register_buffer("positions", table * config.absolute_positions)
        grids = {"down": self.grid, "middle": self.coarse, "up": self.grid}
        self.stages = nn.ModuleDict(
            {name: nn.ModuleList(FastBlock(b, ropes[g], g) for b in self.net.blocks_of(name)) for name, g in grids.items()}
        )

    def compile_blocks(self) -> None:
        """Compile each block, which fuses its element-wise operations."""
        for stage in self.stages.values():
            for block in stage.children():
                block.compile(dynamic=False)

    def forward(self, latent: Tensor, features: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """latent (B, C, h, w), features (B, F), text (B, L, T), mask (B, L) -> velocity (B, C, h, w)."""
        net = self.net
        name = net.config.text_streams[0].name
        embedding, six = net.time(features)
        context, bias = net.context({name: text}, {name: mask})
        x = _tokens(halve(net.patch, latent)) + self.positions
        for block in self.stages["down"].children():
            x = block(x, six, context, bias)
        x = _tokens(halve(net.downsample, x.transpose(1, 2).unflatten(2, self.grid)))
        middle, kept = list(self.stages["middle"].children()), list[Tensor]()
        for i, block in enumerate(middle):
            mirror = i - (len(middle) - len(net.skips))
            if mirror >= 0:
                x = net.skips[mirror](x, kept.pop())
            x = block(x, six, context, bias)
            if i < len(net.skips):
                kept.append(x)
        x = _tokens(double(net.upsample, x.transpose(1, 2).unflatten(2, self.coarse)))
        for block in self.stages["up"].children():
            x = block(x, six, context, bias)
        shift, scale = (net.final_table + embedding[:, None]).split(1, dim=1)
        return double(net.unpatch, modulate(x, shift, scale).transpose(1, 2).unflatten(2, self.grid))


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2).contiguous()


class Worker:
    """A low-precision copy of one width. It takes weights from the supernetwork and adds gradients to it."""

    def __init__(
        self,
        master: ElasticDiT,
        width: str,
        latent: Grid = (16, 16),
        compiled: bool = True,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.dtype = dtype
        self.fast = FastDiT(master.config, width, latent).to(dtype)
        if compiled:
            self.fast.compile_blocks()
        self.pairs = [
            (copy, master.tensors[elastic_name(name, width).replace(".", "/")], tuple(slice(0, n) for n in copy.shape))
            for name, copy in self.fast.net.named_parameters()
        ]
        self.pull()

    @torch.no_grad()
    def pull(self) -> None:
        """Copy the supernetwork's weights."""
        for copy, source, part in self.pairs:
            copy.copy_(source[part])

    @torch.no_grad()
    def push(self) -> None:
        """Add this copy's gradients to the supernetwork's."""
        for copy, source, part in self.pairs:
            if copy.grad is not None:
                if source.grad is None:
                    source.grad = torch.zeros_like(source)
                source.grad[part] += copy.grad
                copy.grad = None

    def __call__(self, latent: Tensor, features: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Velocity in fp32."""
        velocity: Tensor = self.fast(*(t.to(self.dtype) for t in (latent, features, text, mask)))
        return velocity.float()
