"""Stages 5 and 6: from many guided steps to four plain ones, by piecewise rectified flow (PeRFlow, arXiv 2405.07510).

The time axis falls into the four windows of the few-step schedule. The teacher (full width, guided) solves the ODE from
noise through every window in `SUBSTEPS` Euler steps; the states at the borders are cached. A student learns the straight
velocity that leads from where it is at a window's start to where the teacher is at its end. It starts from noise and goes
through the windows on its own, so that it learns to undo its own errors (PeRFlow starts from noised pictures instead), and
it is trained at the windows' starts only, because a four-step sampler is nowhere else. All widths learn together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from examples.shapes.fast import Worker
from examples.shapes.flow import Elastic, State, save
from examples.shapes.latents import Pairs
from examples.shapes.sampling import Network, guided
from examples.shapes.stages import Clock, Log, learning_rate, set_rate
from snapgen_deploy.models import ElasticDiT, sigmas, time_features

SUBSTEPS = 4  # of the teacher in each window
GUIDANCE = 2.0
Episode = tuple[Tensor, Tensor, Tensor]  # borders (B, 5, C, h, w), text (B, L, T), mask (B, L)


@torch.no_grad()
def borders(
    network: Network, features: int, noise: Tensor, text: Tensor, mask: Tensor, empty: tuple[Tensor, Tensor],
    levels: tuple[float, ...], substeps: int = SUBSTEPS, scale: float = GUIDANCE,
) -> Tensor:  # fmt: skip
    """The guided teacher's states (B, windows+1, C, h, w) at the borders of the windows, the noise first."""
    velocity = guided(network, features, text, mask, empty, scale)
    states = [noise]
    for start, end in itertools.pairwise(levels):
        x, change = states[-1], (end - start) / substeps
        for i in range(substeps):
            x = x + change * velocity(x, start + i * change)
        states.append(x)
    return torch.stack(states, dim=1)


def make_cache(
    net: ElasticDiT,
    pairs: Pairs,
    directory: Path,
    clock: Clock,
    levels: tuple[float, ...],
    batch: int = 48,
    compiled: bool = True,
) -> None:
    """Writes the teacher's episodes, 16 batches a shard, until the budget is spent."""
    widest = max(net.config.widths, key=net.config.widths.__getitem__)
    teacher = Worker(net, widest, compiled=compiled)
    empty = (pairs.empty_text, pairs.empty_mask)
    directory.mkdir(parents=True, exist_ok=True)
    episodes: list[Episode] = []
    for _ in clock.ticks():
        latents, text, mask = pairs.batch(batch)
        noise = torch.randn_like(latents)
        states = borders(teacher, net.config.time_features, noise, text, mask, empty, levels)
        episodes.append((states.half(), text, mask))
        if len(episodes) == 16:
            _write(directory, episodes)
            episodes = []
    if episodes:
        _write(directory, episodes)


def _write(directory: Path, episodes: list[Episode]) -> None:
    part = directory / "shard.part"
    torch.save(tuple(torch.cat(part) for part in zip(*episodes, strict=True)), part)
    part.rename(directory / f"teacher{len(list(directory.glob('teacher*.pt'))):03d}.pt")


class Cache:
    """The teacher's episodes, in memory; sees shards that were added since."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.paths: list[Path] = []
        self.refresh()

    def refresh(self) -> None:
        """Reads the shards again where there are new ones."""
        paths = sorted(self.directory.glob("teacher*.pt"))
        if paths != self.paths:
            self.paths = paths
            shards = [torch.load(p, weights_only=True) for p in paths]
            self.states, self.text, self.mask = (torch.cat(part) for part in zip(*shards, strict=True))

    def batch(self, size: int) -> Episode:
        """Random episodes."""
        chosen = torch.randint(len(self.states), (size,))
        return self.states[chosen].float(), self.text[chosen], self.mask[chosen]


class Walk:
    """A batch of episodes, a quarter of it in each window; every step moves each on to its next window."""

    def __init__(self, cache: Cache, levels: tuple[float, ...], batch: int) -> None:
        self.cache, self.levels, self.windows = cache, torch.tensor(levels), len(levels) - 1
        self.size = batch // self.windows
        self.window = torch.arange(self.windows).repeat_interleave(self.size)  # (B,) of each episode
        self.states, self.text, self.mask = cache.batch(self.size * self.windows)
        self.x = self.states[torch.arange(len(self.window)), self.window]  # the teacher's, at first

    def lesson(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Where the episodes are (B, C, h, w), their sigma (B,), text, mask, and the velocity to learn."""
        start, end = self.levels[self.window], self.levels[self.window + 1]
        goal = self.states[torch.arange(len(self.window)), self.window + 1]
        target = (self.x - goal) / (start - end).view(-1, 1, 1, 1)
        return self.x, start, self.text, self.mask, target

    def move(self, velocity: Tensor) -> None:
        """Follows the student's velocity to the window's end; episodes at their end make way for new ones."""
        start, end = self.levels[self.window], self.levels[self.window + 1]
        self.x = self.x - (start - end).view(-1, 1, 1, 1) * velocity.detach()
        over = self.window == self.windows - 1
        states, text, mask = self.cache.batch(int(over.sum()))
        self.states[over], self.text[over], self.mask[over] = states, text, mask
        self.x[over] = states[:, 0]
        self.window = (self.window + 1) % self.windows


def train(
    net: ElasticDiT, directory: Path, clock: Clock, log: Path, keep: Path, levels: tuple[float, ...] | None = None,
    batch: int = 48, peak: float = 4e-4, compiled: bool = True,
) -> State:  # fmt: skip
    """Trains `net`, which starts from the base weights, and returns its moving average."""
    levels = levels or sigmas(4, 3.0)
    cache = Cache(directory)
    elastic = Elastic(net, peak, average=0.998, compiled=compiled)
    walks = {width: Walk(cache, levels, batch) for width in net.config.widths}
    widest = max(net.config.widths, key=net.config.widths.__getitem__)
    rows = Log(log, "distill", clock, every=25)
    subs: Iterator[str] = elastic.narrow()
    for progress in clock.ticks():
        set_rate(elastic.optimisers, learning_rate(progress, peak))
        losses = {
            width: lesson(elastic.workers[width], walks[width], net.config.time_features) for width in (widest, next(subs))
        }
        elastic.update()
        rows.add(**losses)
        if elastic.steps % 100 == 0:
            cache.refresh()
            save(elastic.mean, keep)
    save(elastic.mean, keep)
    return elastic.mean


def lesson(worker: Worker, walk: Walk, features: int) -> Tensor:
    """One step of one width: loss, gradients, and the walk goes on."""
    x, sigma, text, mask, target = walk.lesson()
    worker.pull()
    velocity = worker(x, time_features(sigma, features), text, mask)
    loss = (velocity - target).square().mean()
    loss.backward()
    worker.push()
    walk.move(velocity)
    return loss.detach()
