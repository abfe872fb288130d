"""Entry points: a reference component in, the same mathematics in operations that a phone runs well out.

Rewritten modules keep the reference's tensors where they can; folded ones (centred q and k projections, small tables) are new.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import nn

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models import DiT, TextEncoder, TinyDecoder
from snapgen_deploy.sparse.channels_forms import CHANNELS_FORMS
from snapgen_deploy.sparse.channels_student import ChannelsStudent
from snapgen_deploy.sparse.decoder import ImageDecoder, UpsampleForm
from snapgen_deploy.sparse.decoder_range import Scales
from snapgen_deploy.sparse.forms import FORMS
from snapgen_deploy.sparse.text_encoder import ChannelsTextEncoder, TokenTextEncoder
from snapgen_deploy.sparse.token_layers import OP_FORMS, OpForm
from snapgen_deploy.sparse.token_student import TokenStudent

Layout = Literal["token", "channels"]
UPSAMPLING: Mapping[str, UpsampleForm] = {"token": "transposed", "channels": "native"}


def rewrite_student(
    dit: DiT,
    latent: tuple[int, int],
    *,
    layout: Layout,
    form: str,
    batch: int = 1,
    ops: OpForm = "spelled",
    keep_weights: bool = False,
) -> nn.Module:
    """The student for latents (batch, C, *latent), called as (latent, time_features, stream, stream_mask, ...) -> velocity.

    `form` names the kernel of the local attention (`FORMS`). `ops` matters to the token layout only: "spelled" writes norms
    and GELU in operations that XNNPACK takes and computes right, "half" does so in a way that half precision cannot overflow,
    "native" leaves them whole for runtimes that fuse them.
    With `keep_weights` nothing is folded into the weights of a layer: they hold the student's own values, some in another
    order, so that the few values of a palette stay as few, for two operations more in each norm of q and k.
    Raises BadInput for an unknown layout, form or ops, a batch below 1, or a latent that the patches or blocks do not divide.
    """
    _known("layout", layout, UPSAMPLING)
    _known("form", form, FORMS)
    _known("ops", ops, OP_FORMS)
    if batch < 1:
        raise BadInput(f"got batch {batch}, expected 1 or more")
    problems = dit.config.grid_problems(*latent)
    if problems:
        raise BadInput("; ".join(problems))
    grid = dit.config.grid(*latent)
    if layout == "token":
        return TokenStudent(dit, grid, FORMS[form], batch, ops, keep_weights).eval()
    return ChannelsStudent(dit, grid, CHANNELS_FORMS[form], keep_weights).eval()


def rewrite_decoder(
    decoder: TinyDecoder,
    latent: tuple[int, int],
    *,
    layout: Layout,
    upsample: UpsampleForm | None = None,
    scales: Scales | None = None,
) -> nn.Module:
    """The decoder for latents (B, C, *latent) -> picture (B, 3, f*h, f*w).

    Both layouts keep maps as (B, C, H, W); they differ in nearest upsampling, which XNNPACK does not take as such
    (`upsample`: "native", the default of the channels layout, or "transposed"). `scales` (of `norm_scales`) go into the
    weights before the norms that they name, so that half precision can hold their squares. Raises BadInput for an unknown
    layout or upsampling, or a latent side below 1.
    """
    _known("layout", layout, UPSAMPLING)
    chosen = UPSAMPLING[layout] if upsample is None else upsample
    _known("upsample", chosen, ("native", "transposed"))
    if min(latent) < 1:
        raise BadInput(f"got a latent of {latent[0]}x{latent[1]}, expected both sides to be 1 or more")
    return ImageDecoder(decoder, chosen, scales or {}).eval()


def rewrite_text_encoder(
    encoder: TextEncoder, *, layout: Layout, batch: int = 1, ops: OpForm = "spelled", form: str = "per_head"
) -> nn.Module:
    """The text encoder for tokens (batch, L) int32 and mask (batch, L), L the configured length -> text (batch, L, D).

    `ops` as in `rewrite_student`; `form` names the kernel of attention and matters to the channels layout only. Raises
    BadInput for an unknown layout, form or ops, or a batch below 1.
    """
    _known("layout", layout, UPSAMPLING)
    _known("form", form, FORMS)
    _known("ops", ops, OP_FORMS)
    if batch < 1:
        raise BadInput(f"got batch {batch}, expected 1 or more")
    if layout == "token":
        return TokenTextEncoder(encoder, batch, ops).eval()
    return ChannelsTextEncoder(encoder, CHANNELS_FORMS[form]).eval()


def _known(what: str, got: str, choices: Mapping[str, object] | tuple[str, ...]) -> None:
    """BadInput where `got` is none of the choices."""
    if got not in choices:
        raise BadInput(f"got {what} {got!r}, expected one of {', '.join(choices)}")
