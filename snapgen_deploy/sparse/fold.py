"""Constants that are folded into weights or tables when a graph is built.

Nothing here changes the mathematics; each fold removes operations from every step on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snapgen_deploy.models.attention import position_table, rope_table
from snapgen_deploy.models.dit import DiT
from snapgen_deploy.models.unfilled import without_storage


def linear_around(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A Linear layer around existing tensors, weight (out, in) and bias (out,): no copy."""
    with without_storage():
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def pointwise(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A 1x1 convolution with the tensors of a Linear layer, weight (out, in): a view, no copy."""
    with without_storage():
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach()[:, :, None, None], requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def centred(source: nn.Linear, head_dim: int) -> tuple[Tensor, Tensor]:
    """Weight (h*d, D) and bias (h*d,) whose output has mean zero over every head's channels.

    LayerNorm(W x + b) subtracts the mean over the d channels of a head first; that is linear and therefore goes into W and b.
    """
    weight, bias = source.weight.detach(), source.bias.detach()
    per_head = weight.view(-1, head_dim, weight.shape[1])  # (h, d, D)
    bias_per_head = bias.view(-1, head_dim)  # (h, d)
    return (
        (per_head - per_head.mean(1, keepdim=True)).reshape(weight.shape),
        (bias_per_head - bias_per_head.mean(1, keepdim=True)).reshape(-1),
    )


def position_constants(dit: DiT, grid: tuple[int, int]) -> Tensor:
    """Absolute positions (N, D) that are added to the patches; zeros for a network without them."""
    config, width = dit.config, dit.config.hidden_at(dit.width)
    if not config.absolute_positions:
        return torch.zeros(grid[0] * grid[1], width)
    return position_table(*grid, config.hidden, width)


def rope_constants(rows: int, cols: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """C and S (N, d) with rotate(x) = x * C + swap(x) * S, where swap exchanges the two halves of the channels.

    The same rotation as `models.attention.rotate`: C = [cos, cos], S = [-sin, sin].
    """
    cos, sin = rope_table(rows, cols, head_dim, theta)  # (N, d/2) each
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def modulation_table(table: Tensor, scales: tuple[int, ...]) -> Tensor:
    """A block's modulation table (k, D) with the 1 of `1 + scale` added to its scale rows."""
    folded = table.detach().clone()
    for row in scales:
        folded[row] += 1.0
    return folded
