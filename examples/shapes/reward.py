"""Stage 6: the four-step student learns from what it draws, by direct reward fine-tuning (DRaFT, arXiv 2309.17400).

The student draws whole pictures, and the gradient of a reward flows back through the last two of the four steps (DRaFT-K with
K = 2). The reward of a latent is how near it lies to a picture that fulfils the prompt: minus the weighted pseudo-Huber
distance to the nearest of all of them (`nearest.py`). Weights are the decoder's, larger around objects and largest where they
stand out least, and the distance grows linearly, because what was left to learn were small faults of shapes.

The first two steps, which decide sizes and places that a prompt leaves open, are held to the velocities of the student as it
was: rewarded as well, they chose the same for nearly all noises (`diversity` in results/scores.json tells). No detector and no
held-out prompt takes part.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from examples.shapes.autoencoder import weights
from examples.shapes.fast import Worker
from examples.shapes.flow import Elastic, State, save
from examples.shapes.latents import embed
from examples.shapes.nearest import Nearest
from examples.shapes.prompts import sample
from examples.shapes.scenes import RASTER, SIDE, Scene
from examples.shapes.stages import Clock, Log, learning_rate, set_rate
from snapgen_deploy.models import DecoderConfig, ElasticDiT, TextEncoder, time_features

KNEE = 0.1  # of the pseudo-Huber distance, in deviations of the latent
HELD = 2  # steps that are not rewarded
HOLD = 3.0  # weight of their moving, beside the distance
At = Callable[[Worker, Tensor, float], Tensor]  # a network, latents and a noise level -> velocity


def distance(drawn: Tensor, wanted: Tensor, scenes: list[Scene]) -> Tensor:
    """Mean weighted pseudo-Huber distance of latents (B, C, h, w)."""
    weight = F.avg_pool2d(weights(scenes), RASTER)  # (B, 1, h, w)
    gap = ((drawn - wanted).square() + KNEE**2).sqrt() - KNEE
    return (weight * gap).mean()


def draw(worker: Worker, before: Worker, at: At, noise: Tensor, levels: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """The student's latents (B, C, h, w), with the graph of the rewarded steps, and how far the held ones have moved.

    The latter is the mean square of their velocities' difference to those of `before`, at the same places.
    """
    x, moved = noise, []
    for number, (sigma, following) in enumerate(itertools.pairwise(levels)):
        velocity = at(worker, x, sigma)
        if number < HELD:
            with torch.no_grad():
                wanted = at(before, x, sigma)
            moved.append((velocity - wanted).square().mean())
            velocity = velocity.detach()
        x = x + (following - sigma) * velocity
    return x, torch.stack(moved).mean()


def train(
    net: ElasticDiT, base: ElasticDiT, decoder: DecoderConfig, encoder: TextEncoder, clock: Clock, log: Path, keep: Path,
    levels: tuple[float, ...], batch: int = 16, peak: float = 2e-4, compiled: bool = True, seed: int = 11,
) -> State:  # fmt: skip
    """Trains `net` in place on fresh prompts, its first steps held to those of `base` at full width.

    The weights of `base` are copied, so both may be one. Writes the moving average of `net` to `keep` now and then, and
    returns it.
    """
    torch.manual_seed(seed)
    config, rng, nearest = net.config, np.random.default_rng(seed), Nearest(decoder)
    widest = max(config.widths, key=config.widths.__getitem__)
    before = Worker(base, widest, compiled=compiled)
    elastic = Elastic(net, peak, average=0.995, compiled=compiled)
    side = SIDE // decoder.factor
    rows, subs = Log(log, "reward", clock, every=25), elastic.narrow()
    for progress in clock.ticks():
        set_rate(elastic.optimisers, learning_rate(progress, peak))
        specs = [sample(rng, held_out=False)[0] for _ in range(batch)]
        text, mask = embed(encoder, [spec.text() for spec in specs])
        noise = torch.randn(batch, config.latent_channels, side, side)

        def at(network: Worker, x: Tensor, sigma: float, text: Tensor = text, mask: Tensor = mask) -> Tensor:
            return network(x, time_features(torch.full((len(x),), sigma), config.time_features), text, mask)

        losses = {}
        for width in (widest, next(subs)):
            worker = elastic.workers[width]
            worker.pull()
            drawn, moved = draw(worker, before, at, noise, levels)
            loss = distance(drawn, *nearest(drawn, specs))
            (loss + HOLD * moved).backward()
            worker.push()
            losses |= {width: loss.detach(), f"moved_{width}": moved.detach()}
        elastic.update()
        rows.add(**losses)
        if elastic.steps % 100 == 0:
            save(elastic.mean, keep)
    save(elastic.mean, keep)
    return elastic.mean
