"""A student's embedding of the noise level."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class TimeEmbedding(nn.Module):
    """AdaLN-single: one MLP for the whole network gives six modulation vectors; each block adds its own table."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.six = nn.Linear(hidden, 6 * hidden)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features (B, F) -> embedding (B, D), modulation (B, 6, D)."""
        t = self.fc2(F.silu(self.fc1(features)))  # (B, D)
        return t, self.six(F.silu(t)).view(t.shape[0], 6, -1)
