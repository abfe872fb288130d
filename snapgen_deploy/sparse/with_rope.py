"""A single attention layer, for timing or comparison."""

from __future__ import annotations

from torch import Tensor, nn


class WithRope(nn.Module):
    """An attention layer with its table of rotary positions."""

    rope_c: Tensor
    rope_s: Tensor

    def __init__(self, layer: nn.Module, rope: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("rope_c", rope[0])
        self.register_buffer("rope_s", rope[1])

    def forward(self, x: Tensor) -> Tensor:
        """(1, N, D) -> (1, N, D)."""
        y: Tensor = self.layer(x, (self.rope_c, self.rope_s))
        return y
