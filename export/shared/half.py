"""A network in half precision behind fp32 ports."""

from __future__ import annotations

from torch import Tensor, nn


class HalfInside(nn.Module):
    """The network in half precision between fp32 inputs and outputs; integer inputs stay as they are."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.half()

    def forward(self, *inputs: Tensor) -> Tensor:
        """As the network."""
        y: Tensor = self.module(*(x.half() if x.is_floating_point() else x for x in inputs))
        return y.float()
