"""Entry points: rewrite a reference component as the same mathematics in operations that a phone runs well.

Rewritten modules reuse the reference's tensors where they can; folded ones (centred q and k projections, small tables) are new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models import DiT, TextEncoder, TinyDecoder
from snapgen_deploy.models.library_decoder import DiffusersDecoder
from snapgen_deploy.models.library_student import DiffusersStudent
from snapgen_deploy.models.library_text import LibraryText
from snapgen_deploy.models.module_student import ModuleReference
from snapgen_deploy.models.unet import UNet
from snapgen_deploy.sparse.channels_forms import CHANNELS_FORMS
from snapgen_deploy.sparse.channels_student import ChannelsStudent
from snapgen_deploy.sparse.decoder import ImageDecoder, UpsampleForm, with_tiles_first
from snapgen_deploy.sparse.decoder_range import Scales
from snapgen_deploy.sparse.forms import FORMS
from snapgen_deploy.sparse.general import WrittenModule
from snapgen_deploy.sparse.image_layers import ImageForms
from snapgen_deploy.sparse.library_channels import ChannelsLibraryText
from snapgen_deploy.sparse.library_decoder import written_anew
from snapgen_deploy.sparse.library_student import written_student
from snapgen_deploy.sparse.library_token import TokenLibraryText
from snapgen_deploy.sparse.text_encoder import ChannelsTextEncoder, TokenTextEncoder
from snapgen_deploy.sparse.token_layers import OP_FORMS, OpForm
from snapgen_deploy.sparse.token_student import TokenStudent
from snapgen_deploy.sparse.unet_channels import ChannelsUNet
from snapgen_deploy.sparse.unet_token import TokenUNet

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
    """The student for latents (batch, C, *latent), called as (latent, time_features, stream, stream_mask, ..., pooled vectors)
    -> velocity.

    `form` names the kernel of the local attention (`FORMS`). `ops` matters to the token layout only: "spelled" writes norms
    and GELU in operations that XNNPACK takes and computes correctly, "half" does so without overflow in half precision,
    "native" keeps each as one operation for runtimes that fuse them.
    With `keep_weights` nothing is folded into the weights of a layer: they keep the student's values, some in another order,
    so that a palette's values stay few. This costs two more operations in each norm of q and k.

    Raises:
        BadInput: if the layout, form or ops is unknown, the batch is below 1, or the patches or blocks do not divide the
            latent.
    """
    _known("form", form, FORMS)
    _check(layout, ops, batch, dit.config.grid_problems(*latent))
    grid = dit.config.grid(*latent)
    if layout == "token":
        return TokenStudent(dit, grid, FORMS[form], batch, ops, keep_weights).eval()
    return ChannelsStudent(dit, grid, CHANNELS_FORMS[form], keep_weights).eval()


def rewrite_unet(unet: UNet, latent: tuple[int, int], *, layout: Layout, batch: int = 1, ops: OpForm = "spelled") -> nn.Module:
    """The U-Net for latents (batch, C, *latent), called as `rewrite_student`'s; `ops` as there. No weight is changed.

    Raises:
        BadInput: if the layout or ops is unknown, the batch is below 1, or the levels do not halve the latent.
    """
    _check(layout, ops, batch, unet.config.latent_problems(*latent))
    if layout == "channels":
        return ChannelsUNet(unet, latent).eval()
    written = TokenUNet(unet, latent, batch, ops).eval()
    return written if ops == "native" else with_tiles_first(written)


def rewrite_library_student(
    student: DiffusersStudent, latent: tuple[int, int], *, layout: Layout, batch: int = 1, ops: OpForm = "spelled"
) -> nn.Module:
    """A student of diffusers for latents (batch, C, *latent), called as `rewrite_student`'s; `ops` as there.

    Raises:
        BadInput: if the layout or ops is unknown, the batch is below 1, the latent does not fit, or the student has a module
            for which there is no other form.
    """
    _check(layout, ops, batch, student.config.latent_problems(*latent))
    return written_student(student, latent, channels=layout == "channels", batch=batch, ops=ops)


def rewrite_module(
    student: ModuleReference, latent: tuple[int, int], *, layout: Layout, batch: int = 1, ops: OpForm = "spelled"
) -> nn.Module:
    """A student of a user's own class for latents (batch, C, *latent), called as `rewrite_student`'s; `ops` as there.

    Its layers are not known: it runs as it is, with other operations where its code calls PyTorch for attention, norms, means
    and the like.

    Raises:
        BadInput: if the layout or ops is unknown, the batch is below 1, the latent does not fit, or the module gives no latent.
    """
    _check(layout, ops, batch, student.config.latent_problems(*latent))
    return WrittenModule(student, latent, channels=layout == "channels", batch=batch, ops=ops).eval()


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
    (`upsample`: "native", the default of the channels layout, or "transposed"), and in means over many positions, which it adds
    badly. `scales` (of `norm_scales`) go into the weights before the norms that they name, so that half precision can hold
    their squares.

    Raises:
        BadInput: if the layout or upsampling is unknown, or a side of the latent is below 1.
    """
    chosen = _upsampling(latent, layout, upsample)
    written = ImageDecoder(decoder, chosen, scales or {}).eval()
    return with_tiles_first(written) if chosen == "transposed" else written


def rewrite_library_decoder(
    decoder: DiffusersDecoder,
    latent: tuple[int, int],
    *,
    layout: Layout,
    upsample: UpsampleForm | None = None,
    ops: OpForm = "spelled",
) -> nn.Module:
    """The same for a decoder of diffusers. `ops` matters to the token layout: unless it is "native", a mean over channels is
    written as a convolution.

    Raises:
        BadInput: as `rewrite_decoder`; if `ops` is unknown, or the decoder has a module for which there is no other form.
    """
    _known("ops", ops, OP_FORMS)
    chosen = _upsampling(latent, layout, upsample)
    written = written_anew(decoder, ImageForms(chosen, layout == "token" and ops != "native", layout == "channels"))
    return with_tiles_first(written) if chosen == "transposed" else written


def _upsampling(latent: tuple[int, int], layout: Layout, upsample: UpsampleForm | None) -> UpsampleForm:
    """The form of upsampling in a layout, checked."""
    _known("layout", layout, UPSAMPLING)
    chosen = UPSAMPLING[layout] if upsample is None else upsample
    _known("upsample", chosen, ("native", "transposed"))
    if min(latent) < 1:
        raise BadInput(f"got a latent of {latent[0]}x{latent[1]}, expected both sides to be 1 or more")
    return chosen


def rewrite_text_encoder(
    encoder: TextEncoder, *, layout: Layout, batch: int = 1, ops: OpForm = "spelled", form: str = "per_head"
) -> nn.Module:
    """The text encoder for tokens (batch, L) int32 and mask (batch, L), L the configured length -> text (batch, L, D).

    `ops` as in `rewrite_student`; `form` names the kernel of attention and matters to the channels layout only.

    Raises:
        BadInput: if the layout, form or ops is unknown, or the batch is below 1.
    """
    _known("form", form, FORMS)
    _check(layout, ops, batch)
    if layout == "token":
        return TokenTextEncoder(encoder, batch, ops).eval()
    return ChannelsTextEncoder(encoder, CHANNELS_FORMS[form]).eval()


def rewrite_library_text(encoder: LibraryText, *, layout: Layout, ops: OpForm = "spelled", form: str = "per_head") -> nn.Module:
    """A text encoder of transformers for tokens (1, L) int32 and mask (1, L) -> text (1, L - dropped, D), and where the
    configuration asks for it a pooled vector (1, P).

    `ops` and `form` as in `rewrite_text_encoder`.

    Raises:
        BadInput: if the layout, form or ops is unknown.
    """
    _known("form", form, FORMS)
    _check(layout, ops)
    if layout == "token":
        return TokenLibraryText(encoder, ops).eval()
    return ChannelsLibraryText(encoder, form).eval()


def _check(layout: Layout, ops: OpForm, batch: int = 1, problems: Sequence[str] = ()) -> None:
    """Raise BadInput for what no rewrite takes; `problems` say why a latent does not fit."""
    _known("layout", layout, UPSAMPLING)
    _known("ops", ops, OP_FORMS)
    if batch < 1:
        raise BadInput(f"got batch {batch}, expected 1 or more")
    if problems:
        raise BadInput("; ".join(problems))


def _known(what: str, got: str, choices: Mapping[str, object] | tuple[str, ...]) -> None:
    """Raise BadInput unless `got` is one of the choices."""
    if got not in choices:
        raise BadInput(f"got {what} {got!r}, expected one of {', '.join(choices)}")
