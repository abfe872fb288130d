"""Stable Diffusion 3 and Flux: transformers in which image and text attend to both, in either layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.models.library_student import DiffusersStudent, token_places
from snapgen_deploy.models.schedule import timestep_features
from snapgen_deploy.models.unfilled import without_storage
from snapgen_deploy.sparse.library_parts import RotaryTable
from snapgen_deploy.sparse.student_forms import GELU_TANH, Forms, Perceptron, count_streams, feed_forward, with_unread
from snapgen_deploy.sparse.student_parts import (
    EMBEDDED_FEATURES,
    attention_parts,
    joint_parts,
    norm_parts,
    pixels_of,
    positions_of,
    shifted,
    some_inputs,
    with_ones,
)


class JointBlock(nn.Module):
    """One block on hidden states of image and text; of the last one of Stable Diffusion 3 the text's are not needed."""

    def __init__(self, source: Any, heads: int, forms: Forms, *, turned: bool) -> None:
        super().__init__()
        self.forms, self.ends = forms, getattr(source, "context_pre_only", False)
        dual = getattr(source, "attn2", None)
        self.of_image, self.of_text = 6 if dual is None else 9, 2 if self.ends else 6
        scales = (1, 4) if dual is None else (1, 4, 7)
        self.image_vectors = forms.projected(with_ones(source.norm1.linear, self.of_image, scales))
        text_scales = (0,) if self.ends else (1, 4)
        self.text_vectors = forms.projected(with_ones(source.norm1_context.linear, self.of_text, text_scales))
        self.norm1, self.norm2 = forms.norm(norm_parts(source.norm1.norm)), forms.norm(norm_parts(source.norm2))
        self.text_norm1 = forms.norm(norm_parts(source.norm1_context.norm))
        self.text_norm2 = None if self.ends else forms.norm(norm_parts(source.norm2_context))
        image, text = joint_parts(source.attn, heads, turned=turned)
        self.attention = forms.joint(image, text)
        self.dual = None if dual is None else forms.attention(attention_parts(dual))
        self.ffn = feed_forward(source.ff, forms)
        self.text_ffn = None if self.ends else feed_forward(source.ff_context, forms)

    def forward(self, x: Tensor, text: Tensor, time: Tensor, rope: RotaryTable | None) -> tuple[Tensor, Tensor]:
        """Hidden states of image and text, the timestep's vector and rotary tables -> both."""
        vectors = self.forms.parts(self.image_vectors(time), self.of_image)
        shift1, scale1, gate1, shift2, scale2, gate2 = vectors[:6]
        own = self.forms.parts(self.text_vectors(time), self.of_text)
        text_scale, text_shift = own if self.ends else (own[1], own[0])
        y = self.norm1(x)
        mixed, text_mixed = self.attention(y * scale1 + shift1, self.text_norm1(text) * text_scale + text_shift, rope)
        x = x + gate1 * mixed
        if self.dual is not None:
            shift3, scale3, gate3 = vectors[6:]
            z = y * scale3 + shift3
            x = x + gate3 * self.dual(z, z)
        x = x + gate2 * self.ffn(self.norm2(x) * scale2 + shift2)
        if self.text_norm2 is not None and self.text_ffn is not None:
            text = text + own[2] * text_mixed
            text = text + own[5] * self.text_ffn(self.text_norm2(text) * own[4] + own[3])
        return x, text


class SingleBlock(nn.Module):
    """Flux's blocks on image and text in one row: attention and feed-forward layer beside each other."""

    def __init__(self, source: Any, heads: int, forms: Forms) -> None:
        super().__init__()
        self.forms = forms
        self.vectors = forms.projected(with_ones(source.norm.linear, 3, (1,)))
        self.norm = forms.norm(norm_parts(source.norm.norm))
        self.attention = forms.joint(*joint_parts(source.attn, heads, turned=True))
        self.up, self.out, self.act = forms.linear(source.proj_mlp), forms.linear(source.proj_out), forms.activation(GELU_TANH)

    def forward(self, x: Tensor, time: Tensor, rope: RotaryTable) -> Tensor:
        """Hidden states, the timestep's vector and rotary tables -> hidden states."""
        shift, scale, gate = self.forms.parts(self.vectors(time), 3)
        y = self.norm(x) * scale + shift
        mixed, _ = self.attention(y, y, rope)
        out: Tensor = x + gate * self.out(self.forms.beside([mixed, self.act(self.up(y))]))
        return out


class ClipsAndT5(nn.Module):
    """The text of Stable Diffusion 3: embeddings of two CLIPs beside each other, and of T5 after them, in one projection.

    The library fills CLIP's up with zeros, so that the projection's other columns are not read.
    """

    def __init__(self, source: nn.Linear, widths: tuple[int, int], forms: Forms) -> None:
        super().__init__()
        self.forms, (first, second) = forms, widths
        self.first = forms.linear(some_inputs(source, 0, first, biased=True))
        self.second = forms.linear(some_inputs(source, first, second, biased=False))
        self.third = forms.linear(source)

    def forward(self, *embeddings: Tensor) -> Tensor:
        """(B, L_s, dim_s) each -> hidden states."""
        first, second, third = (self.forms.tokens(e) for e in embeddings)
        return self.forms.joined([self.first(first) + self.second(second), self.third(third)])


class LastText(nn.Module):
    """The text of Flux: T5's embeddings."""

    def __init__(self, source: nn.Linear, forms: Forms) -> None:
        super().__init__()
        self.forms, self.linear = forms, forms.linear(source)

    def forward(self, *embeddings: Tensor) -> Tensor:
        """(B, L_s, dim_s) each -> hidden states."""
        y: Tensor = self.linear(self.forms.tokens(embeddings[-1]))
        return y


class JointStudent(nn.Module):
    """The whole network. Inputs that it does not read, such as masks, stay inputs: each is added as zero."""

    positions: Tensor | None
    cos: Tensor | None
    sin: Tensor | None

    def __init__(
        self, network: Any, enter: nn.Conv2d, context: nn.Module, time: Sequence[nn.Linear], pixels: nn.Linear, forms: Forms
    ) -> None:
        super().__init__()
        self.forms, self.context, self.cells = forms, context, enter.kernel_size[0] * enter.kernel_size[1]
        self.enter, self.leave = forms.enter(enter), forms.leave(pixels, enter.kernel_size[0])
        pooled = network.time_text_embed.text_embedder
        self.time = Perceptron([forms.projected(p) for p in time], F.silu)
        self.pooled = Perceptron([forms.projected(p) for p in (pooled.linear_1, pooled.linear_2)], F.silu)
        self.norm = forms.norm(norm_parts(network.norm_out.norm))
        self.last = forms.projected(with_ones(network.norm_out.linear, 2, (0,)))
        self.blocks, self.singles = nn.ModuleList(), nn.ModuleList()
        for name in ("positions", "cos", "sin", "all_cos", "all_sin"):
            self.register_buffer(name, None)

    def turn(self, cos: Tensor, sin: Tensor, text: int) -> None:
        """Take rotary tables (N, d) of the image; the text's tokens are not turned."""
        ones, zeros = cos.new_ones(text, cos.shape[1]), sin.new_zeros(text, sin.shape[1])
        tables = {"cos": cos, "sin": sin, "all_cos": torch.cat([cos, ones]), "all_sin": torch.cat([sin, zeros])}
        for name, table in tables.items():
            setattr(self, name, self.forms.rotary(table))

    def forward(self, latent: Tensor, time_features: Tensor, *texts: Tensor) -> Tensor:
        """latent (B, C, h, w), time_features (B, F), per stream (B, L_s, dim_s) and mask (B, L_s), pooled (B, P_s)."""
        forms, streams = self.forms, count_streams(texts)
        embeddings, pooled = texts[: 2 * streams : 2], texts[2 * streams :]
        features = with_unread(time_features, texts[: 2 * streams])
        x = self.enter(latent)
        if self.positions is not None:
            x = x + self.positions
        vector = pooled[0] if len(pooled) == 1 else torch.cat(pooled, 1)  # (B, P)
        time = F.silu(self.time(forms.vector(features)) + self.pooled(forms.vector(vector)))
        text = self.context(*embeddings)
        rope = None if self.cos is None or self.sin is None else (self.cos, self.sin)
        for block in self.blocks:
            x, text = block(x, text, time, rope)
        if len(self.singles):
            row = forms.joined([x, text])
            for single in self.singles:
                row = single(row, time, (self.all_cos, self.all_sin))
            x = forms.some_tokens(row, 0, latent.shape[2] * latent.shape[3] // self.cells)
        scale, shift = forms.parts(self.last(time), 2)
        out: Tensor = self.leave(self.norm(x) * scale + shift)
        return out


def written_sd3(student: DiffusersStudent, latent: tuple[int, int], forms: Forms) -> nn.Module:
    """Stable Diffusion 3 for a latent."""
    network, config = student.network, student.config
    facts: Any = config.facts
    patches, emb = network.pos_embed, network.time_text_embed.timestep_embedder
    context = ClipsAndT5(network.context_embedder, (config.text_streams[0].dim, config.text_streams[1].dim), forms)
    pixels = pixels_of(network.proj_out, facts.patch_size, facts.latent)
    made = JointStudent(network, patches.proj, context, (emb.linear_1, emb.linear_2), pixels, forms)
    positions = positions_of(patches, latent)
    made.positions = None if positions is None else forms.positions(positions)
    made.blocks.extend(JointBlock(block, facts.heads, forms, turned=False) for block in network.transformer_blocks)
    return made


def written_flux(student: DiffusersStudent, latent: tuple[int, int], forms: Forms) -> nn.Module:
    """Flux for a latent. Its rotary positions are products with tables, and channels are ordered so that halves are turned."""
    network, config = student.network, student.config
    facts: Any = config.facts
    emb = network.time_text_embed
    second = emb.timestep_embedder.linear_2
    if facts.guidance_embeds:
        with torch.no_grad():
            scale = torch.tensor([1000.0 * config.guidance_embedded])
            features = timestep_features(scale, EMBEDDED_FEATURES).to(emb.guidance_embedder.linear_1.weight)
            second = shifted(second, emb.guidance_embedder(features)[0])
    enter = _packed(network.x_embedder)
    context = LastText(network.context_embedder, forms)
    made = JointStudent(network, enter, context, (emb.timestep_embedder.linear_1, second), network.proj_out, forms)
    made.blocks.extend(JointBlock(block, facts.heads, forms, turned=True) for block in network.transformer_blocks)
    made.singles.extend(SingleBlock(block, facts.heads, forms) for block in network.single_transformer_blocks)
    made.turn(*_tables(network.pos_embed, (latent[0] // 2, latent[1] // 2)), config.text_streams[-1].length)
    return made


def _packed(source: nn.Linear) -> nn.Conv2d:
    """The projection of packed latents, ordered (channel, row, column), as a convolution of 2 x 2 cells."""
    with without_storage():
        conv = nn.Conv2d(source.in_features // 4, source.out_features, 2, 2)
    conv.weight = nn.Parameter(source.weight.detach().reshape(source.out_features, -1, 2, 2), requires_grad=False)
    conv.bias = nn.Parameter(source.bias.detach(), requires_grad=False)
    return conv


def _tables(source: Any, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The library's rotary tables of the image's tokens, for heads in two halves: C and S (N, d) of `fold.rope_constants`."""
    with torch.no_grad():
        cos, sin = (table.float()[:, ::2] for table in source(token_places(*grid)))  # (N, d/2), each was there twice
    return torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1)
