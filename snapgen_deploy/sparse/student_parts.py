"""What transformers of `diffusers` are rewritten from: their own layers, and constants, in one shape for every layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snapgen_deploy.errors import BadInput
from snapgen_deploy.sparse import fold
from snapgen_deploy.sparse.library_parts import NormParts


@dataclass(frozen=True)
class AttentionParts:
    """Projections of an attention, and the norms of q and k: over the channels of each head, or of all heads together."""

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    out: nn.Linear
    heads: int
    dim: int  # channels of a head
    q_norm: NormParts | None = None
    k_norm: NormParts | None = None
    across: bool = False  # the norms are over all heads


def attention_parts(source: Any) -> AttentionParts:
    """Of the library's `Attention`.

    Raises:
        BadInput: if it has what is not written here.
    """
    dim = source.to_q.out_features // source.heads
    plain = source.group_norm is None and source.spatial_norm is None and source.rescale_output_factor == 1.0
    if not plain or source.residual_connection or source.to_k.out_features != source.to_q.out_features:
        raise not_converted(source, "with norms of its own, a residual or fewer keys")
    q_norm, k_norm = (None if norm is None else norm_parts(norm) for norm in (source.norm_q, source.norm_k))
    across = q_norm is not None and q_norm.weight.numel() != dim
    return AttentionParts(
        source.to_q, source.to_k, source.to_v, source.to_out[0], source.heads, dim, q_norm, k_norm, across
    )  # fmt: skip


def norm_parts(norm: Any) -> NormParts:
    """Of a LayerNorm or an RMSNorm, with ones where it has no weight.

    Raises:
        BadInput: if it is another norm.
    """
    kind = type(norm).__name__
    if kind not in ("LayerNorm", "RMSNorm", "FP32LayerNorm"):
        raise not_converted(norm)
    shape = norm.normalized_shape if kind != "RMSNorm" else norm.dim
    weight = norm.weight.detach() if norm.weight is not None else torch.ones(tuple(shape))
    bias = norm.bias.detach() if getattr(norm, "bias", None) is not None else None
    return NormParts(weight, bias, norm.eps, centred=kind != "RMSNorm")


def not_converted(module: object, what: str = "") -> BadInput:
    """That a module of the library is not known here."""
    return BadInput(f"student: a {type(module).__name__} of diffusers{what and f' {what}'} is not converted for any target")


def pixels_of(source: nn.Linear, patch: int, channels: int) -> nn.Linear:
    """A projection to the pixels of a patch, ordered (row, column, channel), as one to its first `channels`, ordered (channel,
    row, column)."""
    order = torch.arange(source.out_features).reshape(patch, patch, -1)[:, :, :channels].permute(2, 0, 1).flatten()
    order = order.to(source.weight.device)
    bias = None if source.bias is None else source.bias.detach()[order]
    return fold.linear_around(source.weight.detach()[order], bias)


def shifted(source: nn.Linear, constant: Tensor) -> nn.Linear:
    """A Linear layer whose result is larger by a constant (out,)."""
    base = constant if source.bias is None else source.bias.detach() + constant
    return fold.linear_around(source.weight, base)
