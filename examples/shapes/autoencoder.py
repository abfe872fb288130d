"""Stage 1: the autoencoder. Only its decoder, SnapGen's tiny decoder, is shipped.

z = encoder(x) + 0.1 noise, decoded; loss = w (|x - x'| + 2 (x - x')^2) + 1e-3 z^2: a VAE with a fixed variance. The weight w
is larger around objects, and largest around those that stand out least from the background. Half of the pictures are packed
with objects, so that a step sees more outlines than the prompts' one to three.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.shapes.prompts import GAP, sample
from examples.shapes.scenes import BACKGROUNDS, COLOURS, SHAPES, SIDE, SIZES, Scene, Thing
from examples.shapes.stages import Clock, Log, learning_rate, pictures, set_rate
from snapgen_deploy.models import DecoderConfig, TinyDecoder

NOISE = 0.1


class Encoder(nn.Module):
    """Picture (B, 3, 128, 128) -> latent (B, C, 16, 16)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in ((3, 32), (32, 64), (64, 128)))
        self.mix = nn.ModuleList(nn.Conv2d(128, 128, 3, padding=1) for _ in range(2))
        self.out = nn.Conv2d(128, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H/8, W/8)."""
        for layer in self.down:
            x = F.silu(layer(x))
        for layer in self.mix:
            x = x + F.silu(layer(x))
        latent: Tensor = self.out(x)
        return latent


def crowd(rng: np.random.Generator, attempts: int = 24) -> Scene:
    """As many random objects as `attempts` tries place without touching."""
    things: list[Thing] = []
    colours = list(COLOURS)
    for _ in range(attempts):
        half = float(rng.uniform(*list(SIZES.values())[rng.integers(2)]))
        x, y = (float(c) for c in rng.uniform(half + 1, SIDE - half - 1, 2))
        if all(max(abs(t.x - x), abs(t.y - y)) >= t.half + half + GAP for t in things):
            things.append(Thing(colours[rng.integers(len(colours))], SHAPES[rng.integers(len(SHAPES))], x, y, half))
    return Scene(list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))], tuple(things))


def weights(drawn: list[Scene]) -> Tensor:
    """(B, 1, 128, 128): 1 on the background, up to 10 around objects of little contrast."""
    maps = torch.ones(len(drawn), 1, SIDE, SIDE)
    for scene, where in zip(drawn, maps, strict=True):
        for t in scene.things:
            rows, cols = (slice(max(int(c - t.half - 2), 0), int(c + t.half + 3)) for c in (t.y, t.x))
            contrast = float(np.linalg.norm(np.subtract(COLOURS[t.colour], BACKGROUNDS[scene.background])))
            where[0, rows, cols] = 1 + 3 * min(300 / contrast, 3.0)
    return maps


def train(
    config: DecoderConfig, clock: Clock, log: Path, batch: int = 16, seed: int = 1, peak: float = 3e-3, resume: Path | None = None
) -> tuple[Encoder, TinyDecoder]:
    """Trains both halves on freshly drawn scenes; the latent's mean and deviation end up in the decoder's config.

    `config` may carry a mean and deviation already (when training goes on from `resume`); they are then kept.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    plain = replace(config, latent_mean=(), latent_std=())
    encoder, decoder = Encoder(config.latent_channels), TinyDecoder(plain)
    if resume:
        state = torch.load(resume, weights_only=True)
        encoder.load_state_dict(state["encoder"])
        decoder.load_state_dict(state["decoder"])
    encoder, decoder = (m.to(memory_format=torch.channels_last) for m in (encoder, decoder))  # type: ignore[call-overload]
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    rows = Log(log, "autoencoder", clock)
    for progress in clock.ticks():
        set_rate(optimiser, learning_rate(progress, peak))
        drawn = [crowd(rng) if i % 2 else sample(rng, False)[1] for i in range(batch)]
        x = pictures(drawn).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            z = encoder(x).float()
            y = decoder(z + NOISE * torch.randn_like(z)).float()
        w = weights(drawn)
        absolute, square = (w * (x - y).abs()).mean(), (w * (x - y).square()).mean()
        loss = absolute + 2 * square + 1e-3 * z.square().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        rows.add(loss=loss.detach(), l1=absolute.detach(), mse=square.detach(), latent=z.detach().std())
    return encoder.eval(), measured(config, encoder, decoder, rng).eval()


@torch.no_grad()
def measured(config: DecoderConfig, encoder: Encoder, decoder: TinyDecoder, rng: np.random.Generator) -> TinyDecoder:
    """The decoder with the latent's per-channel mean and deviation in its config."""
    final = TinyDecoder(config)
    final.load_state_dict(decoder.state_dict())
    if config.latent_std:
        return final
    z = encoder(pictures([sample(rng, False)[1] for _ in range(256)]))
    mean, std = z.mean((0, 2, 3)).tolist(), z.std((0, 2, 3)).tolist()
    rounded = {"latent_mean": tuple(round(m, 6) for m in mean), "latent_std": tuple(round(s, 6) for s in std)}
    final = TinyDecoder(replace(config, **rounded))
    final.load_state_dict(decoder.state_dict())
    return final


@torch.no_grad()
def encode(encoder: Encoder, config: DecoderConfig, x: Tensor) -> Tensor:
    """Normalised latents (B, C, 16, 16) of pictures."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.latent_mean, config.latent_std))
    normalised: Tensor = (encoder(x).float() - mean) / std
    return normalised
