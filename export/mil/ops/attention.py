"""Fused attention (coremltools: iOS18/transformers.py)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from snapgen_deploy.export.mil.ops.registry import op


@op("scaled_dot_product_attention")
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(query key^T / sqrt(E) + mask) value; a boolean mask is true where attention is allowed."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
