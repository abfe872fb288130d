"""Projection of text embeddings to the width that a student's cross-attention reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.models.attention import MASKED
from snapgen_deploy.models.config import TextStream


class TextProjection(nn.Module):
    """Projects one encoder's embeddings to the common text width."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, dim) -> (B, L, T)."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return y


def text_context(
    projections: nn.ModuleDict, streams: Sequence[TextStream], text: Mapping[str, Tensor], mask: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Per stream (B, L_s, dim) and mask (B, L_s) with 1 = token -> text (B, L, T), bias (B, 1, 1, L).

    Absent streams are left out.

    Raises:
        ValueError: if no stream is given, or one that the student does not have.
    """
    names = [s.name for s in streams if s.name in text]
    if not names or set(text) - {s.name for s in streams}:
        raise ValueError(f"text streams: got {sorted(text)}, expected some of {[s.name for s in streams]}")
    tokens = torch.cat([projections[n](text[n]) for n in names], dim=1)  # (B, L, T)
    bias = torch.cat([(1.0 - mask[n].to(tokens.dtype)) * MASKED for n in names], dim=1)  # (B, L)
    return tokens, bias[:, None, None, :]
