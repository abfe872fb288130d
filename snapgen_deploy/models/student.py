"""The interface of every student, whatever its family: a network that denoises a latent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from snapgen_deploy.models.config import StudentConfig


@dataclass(frozen=True)
class Stage:
    """Equal blocks of a student."""

    depth: int  # number of blocks
    kept: int  # bytes of activations that the gradients need of all of them, for one call


@dataclass(frozen=True)
class TrainingCost:
    """What one call of a student holds in memory while mixed precision measures and tunes it."""

    tokens: int  # of the image, or cells of the largest map
    hidden: int  # channels of each
    stages: tuple[Stage, ...]

    def of_rows(self, rows: int) -> TrainingCost:
        """The cost of a call with so many rows."""
        return TrainingCost(rows * self.tokens, self.hidden, tuple(Stage(s.depth, rows * s.kept) for s in self.stages))


class Student(nn.Module):
    """One sub-network of a checkpoint, called as (latent, features, text, mask) -> velocity.

    Shapes: latent and velocity (B, C, h, w), features (B, F) of the noise level, per text stream its embeddings (B, L, dim)
    and its mask (B, L) with 1 = token. One whose streams have pooled vectors (B, P) takes them after that, per stream.
    """

    config: StudentConfig
    width: str  # name of the sub-network

    def training_cost(self, latent: tuple[int, int]) -> TrainingCost:
        """What measuring and tuning hold in memory for a latent of this height and width."""
        raise NotImplementedError

    def recomputable(self) -> Sequence[nn.Module]:
        """Blocks whose activations may be recomputed for the gradients instead of being kept (activation checkpointing)."""
        raise NotImplementedError

    def forward(self, latent: Tensor, features: Tensor, text: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Tensor:
        """The velocity: noise minus picture."""
        raise NotImplementedError
