"""A student's embedding of the noise level, and of what else conditions the whole picture."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class PooledProjection(nn.Module):
    """Projects pooled vectors of texts, concatenated over the streams, to what is added to the embedding, as SD 3 does."""

    def __init__(self, pooled: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(pooled, hidden)
        self.fc2 = nn.Linear(hidden, hidden)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, P) -> (B, D)."""
        y: Tensor = self.fc2(F.silu(self.fc1(pooled)))
        return y


class TimeEmbedding(nn.Module):
    """AdaLN-single: one MLP for the whole network gives six modulation vectors; each block adds its own table."""

    def __init__(self, features: int, hidden: int, pooled: int = 0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.six = nn.Linear(hidden, 6 * hidden)
        self.pooled = PooledProjection(pooled, hidden) if pooled else None

    def forward(self, features: Tensor, pooled: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """features (B, F), pooled (B, P) -> embedding (B, D), modulation (B, 6, D)."""
        t = self.fc2(F.silu(self.fc1(features)))  # (B, D)
        if self.pooled is not None and pooled is not None:
            t = t + self.pooled(pooled)
        return t, self.six(F.silu(t)).view(t.shape[0], 6, -1)
