"""Stage 1: the autoencoder. Its encoder is fixed; its decoder is SnapGen's tiny decoder, which is shipped.

A latent cell holds the means of red, green and blue over its 8 x 8 pixels, and their spread in the cell: a thumbnail that also
shows where outlines are. Objects are aligned to the cells' raster, so that this distinguishes all of them. Such latents are
much easier to generate than those of a learned encoder, where a 24-pixel object changed a third of all cells. The decoder
learns from noisy latents: loss = w (|x - x'| + 2 (x - x')^2). The weight w is larger around objects, and largest around those
with the least contrast to the background. Half of the pictures are packed with objects.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.shapes.prompts import GAP, sample
from examples.shapes.scenes import BACKGROUNDS, COLOURS, RASTER, SHAPES, SIDE, SIZES, Scene, Thing
from examples.shapes.stages import Clock, Log, learning_rate, pictures, set_rate
from snapgen_deploy.models import DecoderConfig, TinyDecoder

NOISE = 0.3  # largest deviation of the noise that the decoder learns to ignore


def cells(x: Tensor, factor: int = 8) -> Tensor:
    """Pictures (B, 3, H, W) -> means and spread (B, 4, H/f, W/f)."""
    mean = F.avg_pool2d(x, factor)
    spread = (F.avg_pool2d(x * x, factor) - mean * mean).clamp(min=0).mean(1, keepdim=True).sqrt()
    return torch.cat([mean, spread], dim=1)


def encode(config: DecoderConfig, x: Tensor) -> Tensor:
    """Normalised latents (B, 4, H/f, W/f) of pictures."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.latent_mean, config.latent_std))
    return (cells(x, config.factor) - mean) / std


def measured(config: DecoderConfig, rng: np.random.Generator, count: int = 512) -> DecoderConfig:
    """The configuration with the latent's mean and deviation per channel."""
    z = cells(pictures([sample(rng, False)[1] for _ in range(count)]), config.factor)
    mean, std = (tuple(round(float(n), 6) for n in numbers) for numbers in (z.mean((0, 2, 3)), z.std((0, 2, 3))))
    return replace(config, latent_mean=mean, latent_std=std)


def crowd(rng: np.random.Generator, attempts: int = 30) -> Scene:
    """A scene with as many random objects as fit without touching, in `attempts` tries."""
    things: list[Thing] = []
    colours = list(COLOURS)
    for _ in range(attempts):
        half = list(SIZES.values())[rng.integers(len(SIZES))]
        x, y = (float(c) * RASTER for c in rng.integers(2, SIDE // RASTER - 1, 2))
        inside = all(half + 1 <= c <= SIDE - half - 1 for c in (x, y))
        if inside and all(max(abs(t.x - x), abs(t.y - y)) >= t.half + half + GAP for t in things):
            things.append(Thing(colours[rng.integers(len(colours))], SHAPES[rng.integers(len(SHAPES))], x, y, half))
    return Scene(list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))], tuple(things))


def weights(drawn: list[Scene]) -> Tensor:
    """Loss weights (B, 1, 128, 128): 1 on the background, up to 10 around objects of low contrast."""
    maps = torch.ones(len(drawn), 1, SIDE, SIDE)
    for scene, where in zip(drawn, maps, strict=True):
        for t in scene.things:
            rows, cols = (slice(max(int(c - t.half - 2), 0), int(c + t.half + 3)) for c in (t.y, t.x))
            contrast = float(np.linalg.norm(np.subtract(COLOURS[t.colour], BACKGROUNDS[scene.background])))
            where[0, rows, cols] = 1 + 3 * min(300 / contrast, 3.0)
    return maps


def train(config: DecoderConfig, clock: Clock, log: Path, batch: int = 16, seed: int = 1) -> TinyDecoder:
    """Train the decoder on freshly drawn scenes. Its configuration contains the latent's mean and deviation."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    decoder = TinyDecoder(measured(config, rng)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = list(decoder.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    rows = Log(log, "autoencoder", clock)
    for progress in clock.ticks():
        set_rate([optimiser], learning_rate(progress, 2.5e-3))
        drawn = [crowd(rng) if i % 2 else sample(rng, False)[1] for i in range(batch)]
        x = pictures(drawn)
        z = encode(decoder.config, x)
        noisy = z + NOISE * torch.rand(batch, 1, 1, 1) * torch.randn_like(z)
        with torch.autocast("cpu", torch.bfloat16):
            y = decoder(noisy.contiguous(memory_format=torch.channels_last)).float()
        w = weights(drawn)
        absolute, square = (w * (x - y).abs()).mean(), (w * (x - y).square()).mean()
        loss = absolute + 2 * square
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        rows.add(loss=loss.detach(), l1=absolute.detach(), mse=square.detach())
    trained: TinyDecoder = decoder.eval()
    return trained
