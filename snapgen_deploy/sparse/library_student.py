"""Students of `diffusers` in operations that phones take: the same tensors in straight-line layers, in either layout.

Each class of the library has one function that takes it apart; the layers come from `student_forms`. What depends on the
picture's size or on a guidance scale that is embedded is a constant of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.models.library_student import DiffusersStudent
from snapgen_deploy.models.schedule import timestep_features
from snapgen_deploy.models.students import student_class
from snapgen_deploy.sparse import fold
from snapgen_deploy.sparse.decoder import with_tiles_first
from snapgen_deploy.sparse.image_parts import GatedConvolutions, activation
from snapgen_deploy.sparse.joint_student import written_flux, written_sd3
from snapgen_deploy.sparse.latent_levels import written_dreamlite, written_levels
from snapgen_deploy.sparse.student_forms import GELU_TANH, ChannelsForms, Forms, Perceptron, TokenForms, feed_forward
from snapgen_deploy.sparse.student_parts import (
    EMBEDDED_FEATURES,
    attention_parts,
    norm_parts,
    not_converted,
    pixels_of,
    positions_of,
    shifted,
)
from snapgen_deploy.sparse.token_layers import OpForm


def written_student(
    student: DiffusersStudent, latent: tuple[int, int], *, channels: bool, batch: int, ops: OpForm
) -> nn.Module:
    """The student for latents (batch, C, *latent), called as (latent, time_features, stream, stream_mask, ...) -> output.

    Raises:
        BadInput: if it has a module that is not known here.
    """
    patch = student.config.facts.patch
    grid = (latent[0] // patch, latent[1] // patch)
    forms: Forms = ChannelsForms(grid) if channels else TokenForms(grid, batch, ops)
    written = _WRITERS[student_class(student.config.config)](student, latent, forms).eval()
    return written if channels or ops == "native" else with_tiles_first(written)


class AdaBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward layer, modulated by AdaLN-single; the table has the 1 of 1 + scale.

    x = x + gate1 * attention(norm1(x) * scale1 + shift1); x = x + cross(x, text); x = x + gate2 * ffn(norm2(x) * ...).
    """

    table: Tensor

    def __init__(self, source: Any, attention: nn.Module, ffn: nn.Module, forms: Forms, *, to_itself: bool) -> None:
        super().__init__()
        self.forms, self.to_itself = forms, to_itself
        self.register_buffer("table", forms.table(fold.modulation_table(source.scale_shift_table, (1, 4))))
        self.norm1, self.norm2 = forms.norm(norm_parts(source.norm1)), forms.norm(norm_parts(source.norm2))
        self.attention, self.ffn, self.cross = attention, ffn, forms.attention(attention_parts(source.attn2))

    def forward(self, x: Tensor, six: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        """Hidden states, six vectors in a row, text and its bias, in the layout's shapes -> hidden states."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.forms.parts(six + self.table, 6)
        y = self.norm1(x) * scale1 + shift1
        x = x + gate1 * (self.attention(y, y) if self.to_itself else self.attention(y))
        x = x + self.cross(x, text, bias)
        out: Tensor = x + gate2 * self.ffn(self.norm2(x) * scale2 + shift2)
        return out


class AdaStudent(nn.Module):
    """A transformer of such blocks with one text stream."""

    table: Tensor
    positions: Tensor | None

    def __init__(self, blocks: list[AdaBlock], parts: AdaParts, forms: Forms, heads: int) -> None:
        super().__init__()
        self.forms, self.heads, self.blocks = forms, heads, nn.ModuleList(blocks)
        self.enter = forms.enter(parts.conv)
        self.register_buffer("positions", None if parts.positions is None else forms.positions(parts.positions))
        self.time = Perceptron([forms.projected(p) for p in parts.time], F.silu)
        self.six = forms.projected(parts.six)
        self.text = Perceptron([forms.linear(p) for p in parts.text], forms.activation(GELU_TANH))
        self.text_norm = parts.text_norm
        self.norm = forms.norm(norm_parts(parts.norm))
        self.register_buffer("table", forms.table(fold.modulation_table(parts.table, (1,))))
        self.leave = forms.leave(pixels_of(parts.project, parts.patch, parts.channels), parts.patch)

    def forward(self, latent: Tensor, time_features: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """latent (B, C, h, w), time_features (B, F), text (B, L, T), mask (B, L) -> (B, C, h, w)."""
        forms, x = self.forms, self.enter(latent)
        if self.positions is not None:
            x = x + self.positions
        time = self.time(forms.vector(time_features))
        six = self.six(F.silu(time))
        seen = self.text(forms.tokens(text))
        if self.text_norm is not None:
            seen = self.text_norm(seen)
        bias = forms.bias(mask, self.heads)
        for block in self.blocks:
            x = block(x, six, seen, bias)
        (part,) = forms.parts(time, 1)
        shift, scale = (part + row for row in forms.parts(self.table, 2))
        out: Tensor = self.leave(self.norm(x) * scale + shift)
        return out


class AdaParts:
    """What such a transformer has beside its blocks."""

    def __init__(self, network: Any, patches: Any, emb: Any, six: nn.Linear, norm: nn.Module, channels: int) -> None:
        self.conv, self.patch, self.channels = patches.proj, patches.patch_size, channels
        self.positions: Tensor | None = None
        self.time: tuple[nn.Linear, nn.Linear] = (emb.timestep_embedder.linear_1, emb.timestep_embedder.linear_2)
        self.six, self.norm = six, norm
        caption = network.caption_projection
        self.text: tuple[nn.Linear, nn.Linear] = (caption.linear_1, caption.linear_2)
        self.text_norm: nn.Module | None = None
        self.table: Tensor = network.scale_shift_table
        self.project: nn.Linear = network.proj_out


def _facts(student: DiffusersStudent) -> Any:
    """What only one class says is read here by its name."""
    return student.config.facts


def _pixart(student: DiffusersStudent, latent: tuple[int, int], forms: Forms) -> nn.Module:
    network, facts = student.network, _facts(student)
    parts = AdaParts(
        network, network.pos_embed, network.adaln_single.emb, network.adaln_single.linear, network.norm_out, facts.latent
    )
    parts.positions = positions_of(network.pos_embed, latent)
    if facts.reads_size:
        height, width = (student.config.latent_factor * side for side in latent)
        parts.time = (parts.time[0], shifted(parts.time[1], _size_embedding(network.adaln_single.emb, height, width)))
    blocks = []
    for block in network.transformer_blocks:
        attention = forms.attention(attention_parts(block.attn1))
        blocks.append(AdaBlock(block, attention, feed_forward(block.ff, forms), forms, to_itself=True))
    return AdaStudent(blocks, parts, forms, network.transformer_blocks[0].attn2.heads)


def _size_embedding(emb: Any, height: int, width: int) -> Tensor:
    """What PixArt-alpha adds to the timestep's embedding for a picture's size and aspect ratio: (D,)."""
    sizes = torch.tensor([float(height), float(width), float(height) / float(width)])
    with torch.no_grad():
        features = timestep_features(sizes, EMBEDDED_FEATURES).to(emb.resolution_embedder.linear_1.weight)
        return torch.cat([emb.resolution_embedder(features[:2]).flatten(), emb.aspect_ratio_embedder(features[2:]).flatten()])


def _sana(student: DiffusersStudent, latent: tuple[int, int], forms: Forms) -> nn.Module:
    network, facts = student.network, _facts(student)
    time = network.time_embed
    parts = AdaParts(network, network.patch_embed, getattr(time, "emb", time), time.linear, network.norm_out.norm, facts.latent)
    parts.positions = positions_of(network.patch_embed, latent)
    parts.text_norm = forms.norm(norm_parts(network.caption_norm))
    if facts.guidance_embeds:
        scale = torch.tensor([student.config.guidance_embedded * facts.guidance_embeds_scale])
        with torch.no_grad():
            features = timestep_features(scale, EMBEDDED_FEATURES).to(time.guidance_embedder.linear_1.weight)
            parts.time = (parts.time[0], shifted(parts.time[1], time.guidance_embedder(features)[0]))
    blocks = []
    for block in network.transformer_blocks:
        attention, glu = forms.linear_attention(attention_parts(block.attn1)), block.ff
        if glu.norm is not None or glu.residual_connection:
            raise not_converted(glu, "with a norm or a residual")
        ffn = forms.over_map(nn.Sequential(GatedConvolutions(glu, activation(glu.nonlinearity)), glu.conv_point))
        blocks.append(AdaBlock(block, attention, ffn, forms, to_itself=False))
    return AdaStudent(blocks, parts, forms, network.transformer_blocks[0].attn2.heads)


_WRITERS: Mapping[str, Callable[[DiffusersStudent, tuple[int, int], Forms], nn.Module]] = MappingProxyType(
    {
        "PixArtTransformer2DModel": _pixart,
        "SanaTransformer2DModel": _sana,
        "SD3Transformer2DModel": written_sd3,
        "FluxTransformer2DModel": written_flux,
        "UNet2DConditionModel": written_levels,
        "DreamLiteUNetModel": written_dreamlite,
    }
)
