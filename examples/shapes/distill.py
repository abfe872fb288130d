"""Stage 5: from many guided steps to four plain ones, by piecewise rectified flow (PeRFlow, arXiv 2405.07510), on-policy.

The time axis is divided into the four windows of the few-step schedule. In every window, the student learns the straight
velocity from its state at the window's start to the state that the teacher (full width, guided) reaches from there in a few
Euler steps. PeRFlow starts from noised pictures. Here the student passes through the windows itself (on-policy), so that it
learns from states with its own errors, and every target is new. It is trained at the windows' starts only, since a four-step
sampler evaluates it nowhere else. All widths learn from the same targets, and take turns in moving the states on.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from examples.shapes.fast import Worker
from examples.shapes.flow import Elastic, State, save
from examples.shapes.latents import Pairs
from examples.shapes.sampling import Network, guided
from examples.shapes.stages import Clock, Log, learning_rate, set_rate
from snapgen_deploy.models import ElasticDiT, sigmas, time_features

SUBSTEPS = (2, 2, 2, 3)  # steps of the teacher per window; with 4 everywhere it drew little better (78 for 75 % of objects)
GUIDANCE = 2.0


@torch.no_grad()
def follow(
    network: Network, features: int, x: Tensor, text: Tensor, mask: Tensor, empty: tuple[Tensor, Tensor],
    start: float, end: float, substeps: int, scale: float = GUIDANCE,
) -> Tensor:  # fmt: skip
    """The state that the guided teacher reaches at noise level `end` from `x` (B, C, h, w) at `start`."""
    velocity, change = guided(network, features, text, mask, empty, scale), (end - start) / substeps
    for i in range(substeps):
        x = x + change * velocity(x, start + i * change)
    return x


class Walk:
    """Pictures that pass through the windows, an equal number in each. Every step moves each to its next window."""

    def __init__(self, pairs: Pairs, levels: tuple[float, ...], batch: int) -> None:
        self.pairs, self.levels, self.windows = pairs, torch.tensor(levels), len(levels) - 1
        self.empty = (pairs.empty_text, pairs.empty_mask)
        each = batch // self.windows  # pictures per window
        self.window = torch.arange(self.windows).repeat_interleave(each)  # (B,) window of each picture
        latents, self.text, self.mask = pairs.batch(each * self.windows)
        level = self.levels[self.window].view(-1, 1, 1, 1)
        self.x = (1 - level) * latents + level * torch.randn_like(latents)  # noised pictures, at first

    def lesson(self, teacher: Network, features: int, substeps: tuple[int, ...] = SUBSTEPS) -> Tensor:
        """The velocities (B, C, h, w) from the pictures' states to the states that the teacher reaches from there."""
        target = torch.empty_like(self.x)
        for number in range(self.windows):
            here = self.window == number
            start, end = float(self.levels[number]), float(self.levels[number + 1])
            place = (self.x[here], self.text[here], self.mask[here], self.empty, start, end)
            target[here] = (self.x[here] - follow(teacher, features, *place, substeps[number])) / (start - end)
        return target

    @property
    def sigma(self) -> Tensor:
        """The noise level (B,) of each picture."""
        return self.levels[self.window]

    def move(self, velocity: Tensor) -> None:
        """Follow a velocity to the window's end. Finished pictures are replaced by noise with other prompts."""
        change = self.levels[self.window + 1] - self.levels[self.window]
        self.x = self.x + change.view(-1, 1, 1, 1) * velocity.detach()
        over = self.window == self.windows - 1
        latents, self.text[over], self.mask[over] = self.pairs.batch(int(over.sum()))
        self.x[over] = torch.randn_like(latents)
        self.window = (self.window + 1) % self.windows


def train(
    net: ElasticDiT, base: ElasticDiT, pairs: Pairs, clock: Clock, log: Path, keep: Path,
    levels: tuple[float, ...] | None = None, batch: int = 48, peak: float = 4e-4, compiled: bool = True,
) -> State:  # fmt: skip
    """Train `net` with the teacher `base` (copied, so both may be the same); returns the moving average of `net`."""
    config = net.config
    elastic = Elastic(net, peak, average=0.998, compiled=compiled)
    teacher = Worker(base, elastic.widest, compiled=compiled)
    walk = Walk(pairs, levels or sigmas(4, 3.0), batch)
    rows, subs = Log(log, "distill", clock, every=25), elastic.narrow()
    for progress in clock.ticks():
        set_rate(elastic.optimisers, learning_rate(progress, peak))
        target = walk.lesson(teacher, config.time_features)
        widths = (elastic.widest, next(subs))
        found = {width: lesson(elastic.workers[width], walk, target, config.time_features) for width in widths}
        walk.move(found[widths[elastic.steps % 2]][0])
        elastic.update()
        rows.add(**{width: loss for width, (_, loss) in found.items()})
        if elastic.steps % 100 == 0:
            save(elastic.mean, keep)
    save(elastic.mean, keep)
    return elastic.mean


def lesson(worker: Worker, walk: Walk, target: Tensor, features: int) -> tuple[Tensor, Tensor]:
    """The velocity of one width at the current states, and its loss. Adds the gradients to the supernetwork's."""
    worker.pull()
    velocity = worker(walk.x, time_features(walk.sigma, features), walk.text, walk.mask)
    loss = (velocity - target).square().mean()
    loss.backward()
    worker.push()
    return velocity.detach(), loss.detach()
