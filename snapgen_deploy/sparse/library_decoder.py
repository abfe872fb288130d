"""Decoders of `diffusers` in operations that phones take: the same tensors in straight-line layers over images.

Each class of the library's modules has one function that writes it anew from its own tensors; a module of another class is
refused by name. A convolution over time sees one frame after empty ones, so only its last temporal tap counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from snapgen_deploy.models.library_decoder import DiffusersDecoder
from snapgen_deploy.sparse import fold
from snapgen_deploy.sparse.decoder import ImageGroupNorm
from snapgen_deploy.sparse.image_layers import (
    Affine,
    ChannelFactors,
    Clamp,
    Duplicating,
    ImageAttention,
    ImageForms,
    ImageRMSNorm,
    LinearAttention,
    NearestConv,
    RepeatChannels,
    ShuffledConv,
    SoftClamp,
    Sum,
)
from snapgen_deploy.sparse.image_parts import (
    GatedConvolutions,
    activation,
    image_conv,
    multiplied,
    not_written,
    residual,
    scaled_conv,
    some_channels,
)
from snapgen_deploy.sparse.library_range import NORMS, InputScales, input_scales


@dataclass(frozen=True)
class _Writer:
    """What the functions below share."""

    forms: ImageForms
    scales: InputScales = field(default_factory=dict)

    def __call__(self, module: nn.Module) -> nn.Module:
        """A module of the library, written anew.

        Raises:
            BadInput: if there is no function for its class.
        """
        name = type(module).__name__
        if name not in _WRITERS:
            raise not_written(module)
        return _WRITERS[name](self, module)

    def norm(self, norm: Any, scale: Tensor | None) -> nn.Module:
        """A norm whose input is `scale` times what it is in the reference."""
        if isinstance(norm, nn.GroupNorm):
            return ImageGroupNorm(norm, scale)
        factor = 1.0 if scale is None else float(scale)
        if hasattr(norm, "gamma"):  # F.normalize times sqrt(C): no eps, but a least norm
            bias = norm.bias if isinstance(norm.bias, Tensor) else None
            return ImageRMSNorm((norm.gamma.flatten(), bias), 0.0, factor, self.forms)
        return ImageRMSNorm((norm.weight, norm.bias), norm.eps, factor, self.forms)

    def normed(self, norm: Any) -> nn.Module:
        """A norm whose input is a sum, so that a factor is an operation of its own."""
        if type(norm).__name__ not in NORMS:
            raise not_written(norm)
        scale = self.scales.get(norm)
        return self.norm(norm, None) if scale is None else nn.Sequential(ChannelFactors(scale), self.norm(norm, scale))

    def conv_norm(self, conv: nn.Conv2d, norm: Any) -> list[nn.Module]:
        """A convolution and the norm of its result: a factor goes into the convolution."""
        scale = self.scales.get(norm)
        return [conv, self.normed(norm)] if scale is None else [multiplied(conv, scale), self.norm(norm, scale)]


def written_anew(decoder: DiffusersDecoder, forms: ImageForms) -> nn.Module:
    """The decoder for latents (B, C, h, w) -> picture (B, 3, f*h, f*w).

    Raises:
        BadInput: if it has a module that is not known here.
    """
    write = _Writer(forms, input_scales(decoder))
    device = next(decoder.parameters()).device
    layers: list[nn.Module] = []
    if bool((decoder.mean != 0).any() or (decoder.std != 1).any()):
        layers.append(Affine(decoder.mean.to(device), decoder.std.to(device)))
    if decoder.post_quant_conv is not None:
        layers.append(image_conv(decoder.post_quant_conv))
    layers.append(_ENTIRE[type(decoder.decoder).__name__](write, decoder.decoder, decoder.patch))
    if decoder.facts.VIDEO:
        layers.append(Clamp())
    return nn.Sequential(*layers).eval()


# AutoencoderTiny


def _tiny(write: _Writer, decoder: Any, patch: int) -> nn.Module:
    """The clamp of the latent, the layers in a row, and 2 x - 1 in the tensors of the last one."""
    layers: list[nn.Module] = [SoftClamp(3.0)]
    for layer in decoder.layers:
        if layers and isinstance(layers[-1], nn.Upsample):
            layers[-1] = NearestConv(layer, write.forms.upsample)
        elif isinstance(layer, nn.Upsample):
            if (layer.scale_factor, layer.mode) != (2.0, "nearest"):
                raise not_written(layer, f"that is {layer.mode} by {layer.scale_factor:g}")
            layers.append(layer)
        elif isinstance(layer, nn.Conv2d):
            layers.append(layer)
        else:
            layers.append(write(layer) if type(layer).__name__ in _WRITERS else activation(layer))
    last = layers[-1]
    assert isinstance(last, nn.Conv2d)
    layers[-1] = made = multiplied(last, torch.full((last.out_channels,), 2.0, device=last.weight.device))
    assert made.bias is not None
    made.bias = nn.Parameter(made.bias.detach() - 1.0, requires_grad=False)
    return nn.Sequential(*layers)


def _tiny_block(write: _Writer, block: Any) -> nn.Module:
    main = [layer if isinstance(layer, nn.Conv2d) else activation(layer) for layer in block.conv]
    return residual(main, block.skip, nn.ReLU())


# AutoencoderKL, and the networks for videos that are built like it


def _kl(write: _Writer, decoder: Any, patch: int) -> nn.Module:
    layers = [image_conv(decoder.conv_in), write(decoder.mid_block), *map(write, decoder.up_blocks)]
    return nn.Sequential(*layers, write.normed(decoder.conv_norm_out), activation(decoder.conv_act), decoder.conv_out)


def _mid(write: _Writer, block: Any) -> nn.Module:
    layers = [write(block.resnets[0])]
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        layers += [] if attention is None else [write(attention)]
        layers.append(write(resnet))
    return nn.Sequential(*layers)


def _up(write: _Writer, block: Any) -> nn.Module:
    return nn.Sequential(*map(write, block.resnets), *map(write, block.upsamplers or ()))


def _kl_resnet(write: _Writer, block: Any) -> nn.Module:
    plain = block.time_embedding_norm in ("default", "group") and block.time_emb_proj is None
    if not plain or block.upsample is not None or block.downsample is not None or block.output_scale_factor != 1.0:
        raise not_written(block, "with a time embedding or a change of size")
    act = activation(block.nonlinearity)
    main = [write.normed(block.norm1), act, *write.conv_norm(block.conv1, block.norm2), act, block.conv2]
    return residual(main, block.conv_shortcut)


def _kl_attention(write: _Writer, block: Any) -> nn.Module:
    if block.heads != 1 or block.norm_q is not None or block.spatial_norm is not None or block.rescale_output_factor != 1.0:
        raise not_written(block, "with several heads or norms of its own")
    q, k, v, out = (fold.pointwise(p.weight, p.bias) for p in (block.to_q, block.to_k, block.to_v, block.to_out[0]))
    attention = ImageAttention(scaled_conv(q, block.scale), k, v, out, write.forms)
    return residual([write.normed(block.group_norm), attention], None)


def _kl_upsample(write: _Writer, layer: Any) -> nn.Module:
    if layer.norm is not None or not layer.use_conv or layer.use_conv_transpose or not layer.interpolate:
        raise not_written(layer, "without a plain convolution")
    return NearestConv(layer.conv, write.forms.upsample)


# AutoencoderKLQwenImage, AutoencoderKLWan


def _video(write: _Writer, decoder: Any, patch: int) -> nn.Module:
    layers = [image_conv(decoder.conv_in), write(decoder.mid_block), *map(write, decoder.up_blocks)]
    layers += [write.normed(decoder.norm_out), activation(decoder.nonlinearity)]
    last = image_conv(decoder.conv_out)
    if patch == 1:
        return nn.Sequential(*layers, last)
    if patch != 2:
        raise not_written(decoder, f"with patches of {patch} pixels")
    order = torch.arange(last.out_channels).reshape(-1, 2, 2).transpose(1, 2).flatten()  # columns before rows in the library
    return nn.Sequential(*layers, ShuffledConv(some_channels(last, order), write.forms.upsample))


def _video_resnet(write: _Writer, block: Any) -> nn.Module:
    act = activation(block.nonlinearity)
    first, second = image_conv(block.conv1), image_conv(block.conv2)
    main = [write.normed(block.norm1), act, *write.conv_norm(first, block.norm2), act, second]
    return residual(main, None if isinstance(block.conv_shortcut, nn.Identity) else image_conv(block.conv_shortcut))


def _video_attention(write: _Writer, block: Any) -> nn.Module:
    size = block.dim
    q, k, v = (some_channels(block.to_qkv, torch.arange(i * size, (i + 1) * size)) for i in range(3))
    attention = ImageAttention(scaled_conv(q, size**-0.5), k, v, block.proj, write.forms)
    return residual([write.normed(block.norm), attention], None)


def _video_upsample(write: _Writer, layer: Any) -> nn.Module:
    """Without its convolution over time, which the first frame does not pass."""
    if layer.mode not in ("upsample2d", "upsample3d"):
        raise not_written(layer, f"that does {layer.mode}")
    return NearestConv(layer.resample[1], write.forms.upsample)


def _video_residual_up(write: _Writer, block: Any) -> nn.Module:
    main = [*map(write, block.resnets), *([] if block.upsampler is None else [write(block.upsampler)])]
    if block.avg_shortcut is None:
        return nn.Sequential(*main)
    up = block.avg_shortcut  # of its frames the first is left out but for the last of `factor_t`
    places = torch.arange(up.out_channels * up.factor_t * 4).reshape(-1, up.factor_t, 2, 2)[:, -1]  # (C', 2, 2)
    return residual(main, Duplicating(places // up.repeats, up.in_channels, write.forms.upsample))


# AutoencoderDC


def _dc(write: _Writer, decoder: Any, patch: int) -> nn.Module:
    first: nn.Module = decoder.conv_in
    if decoder.in_shortcut:
        first = Sum(decoder.conv_in, RepeatChannels(decoder.conv_in.in_channels, decoder.in_shortcut_repeats))
    blocks = [write(block) for stage in reversed(decoder.up_blocks) for block in stage]
    last = decoder.conv_out if isinstance(decoder.conv_out, nn.Conv2d) else write(decoder.conv_out)
    return nn.Sequential(first, *blocks, write.normed(decoder.norm_out), activation(decoder.conv_act), last)


def _dc_block(write: _Writer, block: Any) -> nn.Module:
    return residual([block.conv1, activation(block.nonlinearity), *write.conv_norm(block.conv2, block.norm)], None)


def _dc_up(write: _Writer, block: Any) -> nn.Module:
    form = write.forms.upsample
    if block.interpolate and block.interpolation_mode != "nearest":
        raise not_written(block, f"that is {block.interpolation_mode}")
    main: nn.Module = NearestConv(block.conv, form) if block.interpolate else ShuffledConv(block.conv, form)
    if not block.shortcut:
        return main
    channels = block.conv.in_channels
    sources = torch.arange(channels * block.repeats).reshape(-1, 2, 2) // block.repeats  # (C', 2, 2)
    return Sum(main, Duplicating(sources, channels, form))


def _dc_transformer(write: _Writer, block: Any) -> nn.Module:
    return nn.Sequential(_dc_attention(write, block.attn), write(block.conv_out))


def _dc_attention(write: _Writer, attention: Any) -> nn.Module:
    """Groups of 3 d channels hold d of the queries, keys and values each; here each of the three comes from its own rows."""
    dim = attention.attention_head_dim
    rows = torch.cat([p.weight.detach() for p in (attention.to_q, attention.to_k, attention.to_v)])  # (3 h d, C)
    parts: list[nn.Module] = []
    for place in range(3):
        own = torch.arange(len(rows)).reshape(-1, 3, dim)[:, place].flatten()  # (h d,)
        base = fold.pointwise(rows[own.to(rows.device)], None)
        scales = [_dc_scale(scale, own) for scale in attention.to_qkv_multiscale]
        parts.append(_Scales(base, scales))
    out = write.conv_norm(fold.pointwise(attention.to_out.weight, attention.to_out.bias), attention.norm_out)
    layers = [LinearAttention(parts[0], parts[1], parts[2], dim), *out]
    return residual(layers, None) if attention.residual_connection else nn.Sequential(*layers)


class _Scales(nn.Module):
    """A projection, and beside it the same seen through further convolutions."""

    def __init__(self, base: nn.Module, scales: list[nn.Module]) -> None:
        super().__init__()
        self.base, self.scales = base, nn.ModuleList(scales)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C' * (1 + scales), H, W)."""
        y = self.base(x)
        return torch.cat([y, *(scale(y) for scale in self.scales)], 1) if self.scales else y


def _dc_scale(scale: Any, own: Tensor) -> nn.Module:
    """Some channels of a depthwise convolution and a grouped 1x1 one, whose groups stay whole."""
    return nn.Sequential(some_channels(scale.proj_in, own), some_channels(scale.proj_out, own))


def _dc_feed_forward(write: _Writer, block: Any) -> nn.Module:
    main = [GatedConvolutions(block, activation(block.nonlinearity)), *write.conv_norm(block.conv_point, block.norm)]
    return residual(main, None) if block.residual_connection else nn.Sequential(*main)


_Entire = Callable[[_Writer, Any, int], nn.Module]
_ENTIRE: Mapping[str, _Entire] = MappingProxyType(
    {"DecoderTiny": _tiny, "Decoder": lambda w, d, p: (_dc if hasattr(d, "in_shortcut") else _kl)(w, d, p),
     "QwenImageDecoder3d": _video, "WanDecoder3d": _video}
)  # fmt: skip
_WRITERS: Mapping[str, Callable[[_Writer, Any], nn.Module]] = MappingProxyType(
    {
        "AutoencoderTinyBlock": _tiny_block,
        "UNetMidBlock2D": _mid,
        "UpDecoderBlock2D": _up,
        "ResnetBlock2D": _kl_resnet,
        "Attention": _kl_attention,
        "Upsample2D": _kl_upsample,
        **{f"{name}MidBlock": _mid for name in ("QwenImage", "Wan")},
        **{f"{name}UpBlock": _up for name in ("QwenImage", "Wan")},
        **{f"{name}ResidualBlock": _video_resnet for name in ("QwenImage", "Wan")},
        **{f"{name}AttentionBlock": _video_attention for name in ("QwenImage", "Wan")},
        **{f"{name}Resample": _video_upsample for name in ("QwenImage", "Wan")},
        "WanResidualUpBlock": _video_residual_up,
        "ResBlock": _dc_block,
        "EfficientViTBlock": _dc_transformer,
        "GLUMBConv": _dc_feed_forward,
        "DCUpBlock2d": _dc_up,
    }
)
