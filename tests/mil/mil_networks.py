"""Small networks of the kinds that diffusion pipelines are made of, with random weights."""

from __future__ import annotations

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.models import DecoderConfig, DiT, DiTConfig, TextEncoder, TextEncoderConfig, TextStream, TinyDecoder


class Residual(nn.Module):
    def __init__(self, inner: int, outer: int, time: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, inner), nn.GroupNorm(4, outer)
        self.conv1, self.conv2 = nn.Conv2d(inner, outer, 3, padding=1), nn.Conv2d(outer, outer, 3, padding=1)
        self.time = nn.Linear(time, outer)
        self.skip = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        y: Tensor = self.skip(x) + self.conv2(F.silu(self.norm2(h)))
        return y


class Attention(nn.Module):
    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.k, self.v = nn.Linear(context, width, bias=False), nn.Linear(context, width, bias=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (2, -1)).transpose(1, 2) for y in (self.q(x), self.k(context), self.v(context)))
        mixed: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return mixed


class Transformer(nn.Module):
    """Spatial transformer: self-attention, cross-attention, gated feed-forward."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.norm, self.enter, self.leave = (
            nn.GroupNorm(4, width, eps=1e-6),
            nn.Conv2d(width, width, 1),
            nn.Conv2d(width, width, 1),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.inner, self.cross = Attention(width, width), Attention(width, context)
        self.up, self.down = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        y = self.enter(self.norm(x)).flatten(2).transpose(1, 2)
        z = self.norms[0](y)
        y = y + self.inner(z, z)
        y = y + self.cross(self.norms[1](y), context)
        value, gate = self.up(self.norms[2](y)).chunk(2, -1)
        y = y + self.down(value * F.gelu(gate))
        return x + self.leave(y.transpose(1, 2).unflatten(2, tuple(x.shape[2:])))


class UNet(nn.Module):
    """One level down, one up, as in a latent diffusion U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        self.first, self.middle, self.last = Residual(16, 16, 32), Residual(32, 32, 32), Residual(48, 16, 32)
        self.attention = Transformer(16, 24)
        self.down, self.up = nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)

    def forward(self, x: Tensor, step: Tensor, context: Tensor) -> Tensor:
        angles = step[:, None] * torch.exp(torch.arange(8) * -1.15)
        time = self.time(torch.cat([angles.cos(), angles.sin()], -1))
        kept = self.attention(self.first(self.enter(x), time), context)
        h = self.middle(self.down(kept), time)
        h = self.up(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        y: Tensor = self.leave(F.silu(self.norm(self.last(torch.cat([h, kept], 1), time))))
        return y


class VaeDecoder(nn.Module):
    """What decoders use besides: attention over pixels, transposed convolution, other norms, padding, shuffles."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.block = nn.Conv2d(4, 16, 3, padding=1), Residual(16, 16, 8)
        self.attention = nn.MultiheadAttention(16, 1, batch_first=True)
        self.up = nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1)
        self.batch, self.instance = nn.BatchNorm2d(8), nn.InstanceNorm2d(8, affine=True)
        self.leave = nn.Conv2d(8, 12, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.enter(x), torch.zeros(1, 8))
        y = x.flatten(2).transpose(1, 2)
        mixed = self.attention(y, y, y, need_weights=False)[0]
        x = self.batch(self.up(x + mixed.transpose(1, 2).unflatten(2, tuple(x.shape[2:]))))
        x = F.interpolate(self.instance(x), scale_factor=2.0, mode="bilinear")
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 2)
        return F.pixel_shuffle(self.leave(x), 2).tanh()


class HiddenStates(nn.Module):
    """A transformers model as a function of tensors alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, first: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden: Tensor = (self.model(first) if mask is None else self.model(first, attention_mask=mask)).last_hidden_state
        return hidden


def clip_text() -> nn.Module:
    return HiddenStates(
        transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=99,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=16,
                eos_token_id=2,
                bos_token_id=1,
                pad_token_id=0,
                attn_implementation="eager",
            )
        )
    )


def t5_encoder(layers: int = 2) -> nn.Module:
    config = transformers.T5Config(
        vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=layers, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return HiddenStates(transformers.T5EncoderModel(config))


def vision_transformer() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    return HiddenStates(transformers.ViTModel(config, add_pooling_layer=False))


class Student(nn.Module):
    """The reference student with positional inputs."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.dit = DiT(config, "full")

    def forward(self, latent: Tensor, time_features: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        velocity: Tensor = self.dit(latent, time_features, {"text": text}, {"text": text_mask})
        return velocity


def student() -> nn.Module:
    return Student(
        DiTConfig(
            latent_channels=4,
            hidden=32,
            head_dim=8,
            depths=(1, 1, 1),
            attention=("assa", "full", "full"),
            blocks=2,
            text_streams=(TextStream("text", 12, 6),),
            text_width=16,
            cross_dim=16,
            time_features=16,
            widths={"full": 1.0},
        )
    )


def decoder() -> nn.Module:
    return TinyDecoder(DecoderConfig(latent_channels=4, channels=(16, 8), blocks=(1, 1), groups=4))


def text_encoder() -> nn.Module:
    return TextEncoder(TextEncoderConfig(vocab=50, length=8, width=16, layers=2, heads=2))
