"""Stage 6: the four-step student learns from its own pictures, by direct reward fine-tuning (DRaFT, arXiv 2309.17400).

The student draws whole pictures, and the gradient of a reward flows back through all four steps. The reward of a latent is
minus the weighted pseudo-Huber distance to the nearest picture that fulfils the prompt (`nearest.py`), so that the noise still
decides which picture is drawn. The weights are those of the decoder's loss: larger around objects, and largest around those
with the least contrast. The distance grows linearly, because the remaining errors were small faults of shapes. Neither the
detector nor a held-out prompt is used.

A reward makes a network choose what is easiest: without a countermeasure, nearly all objects whose size the prompt leaves open
became large. Therefore sizes have prices in the search, which rise while a size is found too often. The result is the mean of
the weights before and after (WiSE-FT, arXiv 2109.01903): it draws as well as the weights after, and nearly as variedly as
those before.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from examples.shapes.autoencoder import weights
from examples.shapes.flow import Elastic, State, save
from examples.shapes.latents import embed
from examples.shapes.nearest import Nearest
from examples.shapes.prompts import sample
from examples.shapes.sampling import guided
from examples.shapes.scenes import RASTER, SIDE, Scene
from examples.shapes.stages import Clock, Log, learning_rate, set_rate
from snapgen_deploy.models import DecoderConfig, ElasticDiT, TextEncoder, euler

KNEE = 0.1  # transition point of the pseudo-Huber distance, in deviations of the latent
AFTER = 0.75  # share of the trained weights in the result


def distance(drawn: Tensor, wanted: Tensor, scenes: list[Scene]) -> Tensor:
    """Mean weighted pseudo-Huber distance of latents (B, C, h, w)."""
    weight = F.avg_pool2d(weights(scenes), RASTER)  # (B, 1, h, w)
    gap = ((drawn - wanted).square() + KNEE**2).sqrt() - KNEE
    return (weight * gap).mean()


def train(
    net: ElasticDiT, decoder: DecoderConfig, encoder: TextEncoder, clock: Clock, log: Path, keep: Path,
    levels: tuple[float, ...], batch: int = 16, peak: float = 2e-4, compiled: bool = True, seed: int = 11,
) -> State:  # fmt: skip
    """Train `net` in place on new prompts; returns the mean of its weights before and of their moving average after.

    The result is also written to `keep` every 100 steps.
    """
    torch.manual_seed(seed)
    config, rng, nearest = net.config, np.random.default_rng(seed), Nearest(decoder)
    before = {key: tensor.detach().clone() for key, tensor in net.tensors.items()}
    elastic = Elastic(net, peak, average=0.99, compiled=compiled)
    side = SIDE // decoder.factor
    rows, subs = Log(log, "reward", clock, every=25), elastic.narrow()
    for progress in clock.ticks():
        set_rate(elastic.optimisers, learning_rate(progress, peak))
        specs = [sample(rng, held_out=False)[0] for _ in range(batch)]
        text, mask = embed(encoder, [spec.text() for spec in specs])
        noise = torch.randn(batch, config.latent_channels, side, side)
        losses = {}
        for width in (elastic.widest, next(subs)):
            worker = elastic.workers[width]
            worker.pull()
            drawn = euler(guided(worker, config.time_features, text, mask), noise, levels)
            wanted, scenes = nearest(drawn, specs)
            nearest.balance(specs, scenes)
            loss = distance(drawn, wanted, scenes)
            loss.backward()
            worker.push()
            losses[width] = loss.detach()
        elastic.update()
        rows.add(**losses, price=nearest.prices[max(nearest.prices)])
        if elastic.steps % 100 == 0:
            save(between(before, elastic.mean), keep)
    state = between(before, elastic.mean)
    save(state, keep)
    return state


def between(before: State, after: State) -> State:
    """The weighted mean of the weights before and after."""
    return {key: torch.lerp(tensor, after[key], AFTER) for key, tensor in before.items()}
