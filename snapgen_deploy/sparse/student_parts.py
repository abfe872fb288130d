"""What transformers of `diffusers` are rewritten from: their own layers, and constants, in one shape for every layout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from snapgen_deploy.errors import BadInput
from snapgen_deploy.sparse import fold
from snapgen_deploy.sparse.library_parts import NormParts

EMBEDDED_FEATURES = 256  # of a guidance scale or a size


@dataclass(frozen=True)
class AttentionParts:
    """Projections of an attention, and the norms of q and k: over the channels of each head, or of all heads together."""

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    out: nn.Linear | None  # None: what the heads give is the result
    heads: int
    dim: int  # channels of a head
    q_norm: NormParts | None = None
    k_norm: NormParts | None = None
    across: bool = False  # the norms are over all heads
    groups: int | None = None  # heads of keys and values, where they are fewer

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.groups or self.heads


def attention_parts(source: Any) -> AttentionParts:
    """Of the library's `Attention`.

    Raises:
        BadInput: if it has what is not written here.
    """
    dim = source.to_q.out_features // source.heads
    plain = source.group_norm is None and source.spatial_norm is None and source.rescale_output_factor == 1.0
    if not plain or source.residual_connection:
        raise not_converted(source, "with norms of its own or a residual")
    q_norm, k_norm = (None if norm is None else norm_parts(norm) for norm in (source.norm_q, source.norm_k))
    across, groups = q_norm is not None and q_norm.weight.numel() != dim, source.to_k.out_features // dim
    if across and groups != source.heads:
        raise not_converted(source, "with norms over all heads and fewer keys")
    return AttentionParts(
        source.to_q, source.to_k, source.to_v, source.to_out[0], source.heads, dim, q_norm, k_norm, across, groups
    )  # fmt: skip


def joint_parts(source: Any, heads: int, *, turned: bool = False) -> tuple[AttentionParts, AttentionParts | None]:
    """Of an attention over image and text, as Stable Diffusion 3 and Flux have it: the image's parts, and the text's.

    With `turned`, the channels of each head of q and k are reordered from pairs of neighbours, which rotary positions turn
    there, to two halves: scores stay what they are.
    """
    dim = source.to_q.out_features // heads
    order = torch.cat([torch.arange(0, dim, 2), torch.arange(1, dim, 2)]) if turned else None

    def parts(q: Any, k: Any, v: Any, out: Any, norms: tuple[Any, Any]) -> AttentionParts:
        q_norm, k_norm = (None if norm is None else norm_parts(norm) for norm in norms)
        if order is not None:
            q, k = (_reordered(p, heads, order) for p in (q, k))
            q_norm, k_norm = (
                None if n is None else replace(n, weight=n.weight[order.to(n.weight.device)]) for n in (q_norm, k_norm)
            )
        return AttentionParts(q, k, v, out, heads, dim, q_norm, k_norm)

    def part(name: str) -> Any:
        return getattr(source, name, None)

    out = part("to_out")
    image = parts(source.to_q, source.to_k, source.to_v, None if out is None else out[0], (source.norm_q, source.norm_k))
    if part("add_q_proj") is None:
        return image, None
    norms = (part("norm_added_q"), part("norm_added_k"))
    return image, parts(source.add_q_proj, source.add_k_proj, source.add_v_proj, part("to_add_out"), norms)


def _reordered(source: nn.Linear, heads: int, order: Tensor) -> nn.Linear:
    """A projection whose channels have another order in each head."""
    rows = (torch.arange(heads)[:, None] * len(order) + order).flatten().to(source.weight.device)
    return fold.linear_around(source.weight.detach()[rows], None if source.bias is None else source.bias.detach()[rows])


def with_ones(source: nn.Linear, count: int, scales: tuple[int, ...]) -> nn.Linear:
    """A projection to `count` vectors of a modulation, with the 1 of 1 + scale in its bias for those that are scales."""
    ones = torch.zeros(count, source.out_features // count)
    ones[list(scales)] = 1.0
    return shifted(source, ones.flatten().to(source.weight))


def some_outputs(source: nn.Linear, start: int, length: int) -> nn.Linear:
    """A projection to some of its output channels."""
    bias = None if source.bias is None else source.bias.detach().narrow(0, start, length)
    return fold.linear_around(source.weight.detach().narrow(0, start, length), bias)


def some_inputs(source: nn.Linear, start: int, length: int, *, biased: bool) -> nn.Linear:
    """A projection of some of its input channels."""
    weight = source.weight.detach().narrow(1, start, length).contiguous()
    return fold.linear_around(weight, source.bias if biased else None)


def norm_parts(norm: Any) -> NormParts:
    """Of a LayerNorm or an RMSNorm, with ones where it has no weight.

    Raises:
        BadInput: if it is another norm.
    """
    kind = type(norm).__name__
    if kind not in ("LayerNorm", "RMSNorm", "FP32LayerNorm"):
        raise not_converted(norm)
    shape = norm.normalized_shape if hasattr(norm, "normalized_shape") else norm.dim
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


def positions_of(patches: Any, latent: tuple[int, int]) -> Tensor | None:
    """What the library's `PatchEmbed` adds to the patches of a latent: (N, D)."""
    if patches.pos_embed is None:
        return None
    weight = patches.proj.weight
    with torch.no_grad():
        zeros = torch.zeros(1, weight.shape[1], *latent, dtype=weight.dtype, device=weight.device)
        bias = 0.0 if patches.proj.bias is None else patches.proj.bias
        found: Tensor = patches(zeros)[0] - bias
    return found
