"""Fused attention (coremltools: iOS18/transformers.py)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_deploy.export.mil.ops.registry import Warn, op


@op("scaled_dot_product_attention")
def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, warn: Warn, attn_mask: Tensor | None = None
) -> Tensor:
    """softmax(query key^T / sqrt(E) + mask) value; a boolean mask is true where attention is allowed.

    A row that the mask leaves no key is a softmax over infinities, NaN by the formula: torch makes it 0, and so does this.
    """
    if attn_mask is not None and (rows := _left_nothing(attn_mask)):
        warn(
            f"its mask leaves {rows} of {attn_mask[..., 0].numel()} rows no key; by the formula those are NaN, here they are "
            "0, and a device may give either: leave every row at least one key"
        )
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)


def _left_nothing(mask: Tensor) -> int:
    """Rows of a mask, boolean or added to the scores, that allow no key."""
    allowed = mask if mask.dtype == torch.bool else ~torch.isneginf(mask)
    return int((~allowed.any(-1)).sum())
