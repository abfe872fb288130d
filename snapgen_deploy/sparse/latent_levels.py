"""U-Nets of diffusers in either layout: maps (B, C, H, W), and transformers on them in the layout's shapes.

`UNet2DConditionModel` and `DreamLiteUNetModel`, which has separable convolutions, one head of keys, a mask and levels without
self-attention, and reads a second latent to the right of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.models.library_student import DiffusersStudent, picture_numbers, size_numbers
from snapgen_deploy.models.schedule import timestep_features
from snapgen_deploy.sparse import fold
from snapgen_deploy.sparse.decoder import UpsampleForm
from snapgen_deploy.sparse.image_layers import NearestConv, Swish
from snapgen_deploy.sparse.image_parts import activation
from snapgen_deploy.sparse.student_forms import Forms, Perceptron, concatenated, count_streams, with_unread
from snapgen_deploy.sparse.student_parts import attention_parts, norm_parts, not_converted, shifted, some_inputs, some_outputs
from snapgen_deploy.sparse.unet_image import group_norm

_GELU = "gelu"  # by erf, as the library's GEGLU has it


class LatentWriter:
    """What the functions below share."""

    def __init__(self, forms: Forms, native: bool, upsample: UpsampleForm) -> None:
        self.forms, self.native, self.upsample = forms, native, upsample

    def norm(self, source: Any) -> nn.Module:
        """A GroupNorm.

        Raises:
            BadInput: if it is another norm.
        """
        if not isinstance(source, nn.GroupNorm):
            raise not_converted(source)
        return group_norm(source, self.native)

    def at(self, grid: tuple[int, int]) -> LatentWriter:
        """The same on another map."""
        return LatentWriter(self.forms.at(grid), self.native, self.upsample)


class LatentResidual(nn.Module):
    """The library's `ResnetBlock2D` and `ResnetBlock2DDreamLite`."""

    def __init__(self, source: Any, write: LatentWriter) -> None:
        super().__init__()
        plain = source.upsample is None and source.downsample is None and source.time_embedding_norm == "default"
        if not plain or source.output_scale_factor != 1.0 or source.time_emb_proj is None:
            raise not_converted(source, "with another use of the timestep, or a change of size")
        self.norm1, self.norm2 = write.norm(source.norm1), write.norm(source.norm2)
        self.conv1, self.conv2, self.shortcut = source.conv1, source.conv2, source.conv_shortcut
        self.time = fold.pointwise(source.time_emb_proj.weight, source.time_emb_proj.bias)
        self.act = activation(source.nonlinearity)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, in, H, W), time (B, E, 1, 1) -> (B, out, H, W)."""
        y = self.conv1(self.act(self.norm1(x))) + self.time(time)  # (B, out, H, W)
        y = self.conv2(self.act(self.norm2(y)))
        out: Tensor = y + (x if self.shortcut is None else self.shortcut(x))
        return out


class LatentText:
    """The text as transformers read it: in the layout's shape, and with a bias for their scores where its mask is read."""

    def __init__(self, forms: Forms, states: Tensor, mask: Tensor | None) -> None:
        self.forms, self.states, self.mask = forms, states, mask
        self.biases: dict[int, Tensor] = {}

    def bias_of(self, key_heads: int) -> Tensor | None:
        """What the mask adds to scores of so many heads of keys."""
        if self.mask is None:
            return None
        if key_heads not in self.biases:
            self.biases[key_heads] = self.forms.bias(self.mask, key_heads)
        return self.biases[key_heads]


class LatentBlock(nn.Module):
    """The library's `BasicTransformerBlock` with plain norms: self-attention, cross-attention, feed-forward layer.

    DreamLite's blocks without self-attention go on with what their first norm gives, in the place of what it was given.
    """

    def __init__(self, source: Any, forms: Forms) -> None:
        super().__init__()
        gate = source.ff.net[0]
        if source.norm_type != "layer_norm" or source.attn2 is None or source.pos_embed is not None:
            raise not_converted(source, f"with {source.norm_type}")
        if type(gate).__name__ != "GEGLU" or source.only_cross_attention:
            raise not_converted(gate, "as a feed-forward layer")
        self.norm1, self.norm2, self.norm3 = (forms.norm(norm_parts(n)) for n in (source.norm1, source.norm2, source.norm3))
        cross = attention_parts(source.attn2)
        self.attention = None if source.attn1 is None else forms.attention(attention_parts(source.attn1))
        self.cross, self.key_heads = forms.attention(cross), cross.key_heads
        half = gate.proj.out_features // 2
        self.up, self.gate = (forms.linear(some_outputs(gate.proj, i * half, half)) for i in range(2))
        self.down, self.act = forms.linear(source.ff.net[2]), forms.activation(_GELU)

    def forward(self, x: Tensor, text: LatentText) -> Tensor:
        """Hidden states and text in the layout's shapes -> hidden states."""
        y = self.norm1(x)
        x = y if self.attention is None else x + self.attention(y, y)
        x = x + self.cross(self.norm2(x), text.states, text.bias_of(self.key_heads))
        y = self.norm3(x)
        out: Tensor = x + self.down(self.up(y) * self.act(self.gate(y)))
        return out


class LatentTransformer(nn.Module):
    """The library's `Transformer2DModel` and `DreamLiteTransformer2DModel` on a map."""

    def __init__(self, source: Any, write: LatentWriter) -> None:
        super().__init__()
        if not getattr(source, "is_input_continuous", True) or getattr(source, "is_input_patches", False):
            raise not_converted(source, "on anything but a map")
        self.forms, self.norm = write.forms, write.norm(source.norm)
        self.enter, self.leave = (fold.pointwise(p.weight.flatten(1), p.bias) for p in (source.proj_in, source.proj_out))
        self.blocks = nn.ModuleList(LatentBlock(block, write.forms) for block in source.transformer_blocks)

    def forward(self, x: Tensor, text: LatentText) -> Tensor:
        """x (B, C, H, W), text in the layout's shape -> (B, C, H, W)."""
        y = self.forms.of_map(self.enter(self.norm(x)))
        for block in self.blocks:
            y = block(y, text)
        out: Tensor = x + self.leave(self.forms.to_map(y))
        return out


class LatentLayer(nn.Module):
    """A residual block, and a transformer after it where there is one."""

    def __init__(self, residual: Any, transformer: Any, write: LatentWriter) -> None:
        super().__init__()
        self.residual = LatentResidual(residual, write)
        self.transformer = None if transformer is None else LatentTransformer(transformer, write)

    def forward(self, x: Tensor, time: Tensor, text: LatentText) -> Tensor:
        """x (B, in, H, W), time (B, E, 1, 1), text in the layout's shape -> (B, out, H, W)."""
        y: Tensor = self.residual(x, time)
        return y if self.transformer is None else self.transformer(y, text)


def _layers(source: Any, write: LatentWriter) -> nn.ModuleList:
    """The layers of a block of the library."""
    transformers: Sequence[Any] = getattr(source, "attentions", None) or [None] * len(source.resnets)
    return nn.ModuleList(LatentLayer(r, t, write) for r, t in zip(source.resnets, transformers, strict=True))


class LatentLevels(nn.Module):
    """The whole network."""

    def __init__(self, network: Any, latent: tuple[int, int], write: LatentWriter, canvas: int = 1) -> None:
        """With a `canvas` of 2, zeros of the latent's size lie to its right, and their output is left out."""
        super().__init__()
        self.forms, self.first, self.last = write.forms, network.conv_in, network.conv_out
        self.width, self.canvas, self.masked = latent[1], canvas, False
        self.enter: nn.Module = nn.Identity()  # of the text
        self.last_norm, self.last_act = write.norm(network.conv_norm_out), activation(network.conv_act)
        emb, swish = network.time_embedding, Swish()
        self.time = Perceptron([fold.pointwise(p.weight, p.bias) for p in (emb.linear_1, emb.linear_2)], swish)
        self.swish, self.added = swish, nn.ModuleList()
        self.down, self.halvings = nn.ModuleList(), nn.ModuleList()
        grid = (latent[0], canvas * latent[1])
        for block in network.down_blocks:
            self.down.append(_layers(block, write.at(grid)))
            self.halvings.append(nn.Identity() if block.downsamplers is None else _halving(block.downsamplers[0]))
            grid = grid if block.downsamplers is None else (grid[0] // 2, grid[1] // 2)
        self.middle, middle = nn.ModuleList(), network.mid_block
        if middle is not None:
            transformers = [*(getattr(middle, "attentions", None) or [None] * (len(middle.resnets) - 1))]
            # a transformer before each residual block but the first
            pairs = zip(middle.resnets, [*transformers, None], strict=True)
            self.middle.extend(LatentLayer(r, t, write.at(grid)) for r, t in pairs)
        self.up, self.doublings = nn.ModuleList(), nn.ModuleList()
        for block in network.up_blocks:
            self.up.append(_layers(block, write.at(grid)))
            self.doublings.append(nn.Identity() if block.upsamplers is None else _doubling(block.upsamplers[0], write))
            grid = grid if block.upsamplers is None else (grid[0] * 2, grid[1] * 2)

    def forward(self, latent: Tensor, time_features: Tensor, *texts: Tensor) -> Tensor:
        """latent (B, C, h, w), time_features (B, F), per stream (B, L, dim_s) and mask (B, L), pooled (B, P_s)."""
        streams = count_streams(texts)
        masks = texts[1 : 2 * streams : 2]
        time = self.time(_cell(time_features if self.masked else with_unread(time_features, masks)))
        for added in self.added:
            time = time + added(_cell(texts[-1]))
        time = self.swish(time)
        embeddings = texts[: 2 * streams : 2]
        states = self.enter(self.forms.tokens(embeddings[0] if streams == 1 else torch.cat(embeddings, 2)))
        text = LatentText(self.forms, states, masks[0] if self.masked else None)
        x = self.first(latent if self.canvas == 1 else F.pad(latent, (0, (self.canvas - 1) * self.width)))
        kept = [x]
        for layers, halving in zip(self.down, self.halvings, strict=True):
            for layer in layers:  # type: ignore[attr-defined]
                x = layer(x, time, text)
                kept.append(x)
            if not isinstance(halving, nn.Identity):
                x = halving(x)
                kept.append(x)
        for layer in self.middle:
            x = layer(x, time, text)
        for layers, doubling in zip(self.up, self.doublings, strict=True):
            for layer in layers:  # type: ignore[attr-defined]
                x = layer(concatenated([x, kept.pop()], 1), time, text)  # the same, where there is no middle
            x = doubling(x)
        out: Tensor = self.last(self.last_act(self.last_norm(x)))
        return out if self.canvas == 1 else out.narrow(3, 0, self.width)


def _cell(x: Tensor) -> Tensor:
    """(B, F) -> (B, F, 1, 1)."""
    return x.reshape(*x.shape, 1, 1)


def _halving(source: Any) -> nn.Module:
    if source.norm is not None or not source.use_conv or source.padding != 1:
        raise not_converted(source, "without a plain convolution")
    found: nn.Module = source.conv
    return found


def _doubling(source: Any, write: LatentWriter) -> nn.Module:
    if source.norm is not None or not source.use_conv or source.use_conv_transpose or not source.interpolate:
        raise not_converted(source, "without a plain convolution")
    return NearestConv(source.conv, write.upsample)


def written_levels(student: DiffusersStudent, latent: tuple[int, int], forms: Forms) -> nn.Module:
    """`UNet2DConditionModel` for a latent; numbers of the picture's size that it embeds are a constant."""
    network, config = student.network, student.config
    made = LatentLevels(network, latent, _writer(forms))
    if network.config.addition_embed_type is not None:
        facts: Any = config.facts
        numbers = size_numbers(config, latent)
        first, pooled = network.add_embedding.linear_1, config.text_streams[-1].pooled
        with torch.no_grad():
            constant = timestep_features(numbers, facts.addition_time_embed_dim).flatten().to(first.weight)
            known = some_inputs(first, pooled, first.in_features - pooled, biased=False)(constant)
        layers = [shifted(some_inputs(first, 0, pooled, biased=True), known), network.add_embedding.linear_2]
        made.added.append(Perceptron([fold.pointwise(p.weight, p.bias) for p in layers], Swish()))
    return made


def written_dreamlite(student: DiffusersStudent, latent: tuple[int, int], forms: Forms) -> nn.Module:
    """`DreamLiteUNetModel` for a latent; the picture's size, which it embeds, is a constant in the time's last projection."""
    network, facts = student.network, student.config.facts
    made = LatentLevels(network, latent, _writer(forms), facts.CANVAS)
    made.masked = True
    if network.config.addition_embed_type is not None:
        numbers, emb = picture_numbers(student.config, latent), network.add_embedding
        with torch.no_grad():
            features = timestep_features(numbers, network.config.addition_time_embed_dim).flatten().to(emb.linear_1.weight)
            constant = emb.linear_2(F.silu(emb.linear_1(features)))
        last = shifted(network.time_embedding.linear_2, constant)
        made.time.second = fold.pointwise(last.weight, last.bias)
    project = network.encoder_hid_proj
    if isinstance(project, nn.Linear):
        made.enter = forms.linear(project)
    elif project is not None:
        made.enter = nn.Sequential(forms.linear(project[0]), forms.norm(norm_parts(project[1])))
    return made


def _writer(forms: Forms) -> LatentWriter:
    native = forms.ops == "native"
    return LatentWriter(forms, native, "native" if native else "transposed")
