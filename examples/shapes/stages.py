"""What all training stages share: wall-clock budgets, the learning-rate schedule, batches of scenes, and the log."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.shapes.prompts import PromptSpec, sample
from examples.shapes.scenes import BACKGROUNDS, COLOURS, PLACES, RELATIONS, SHAPES, SIZES, Scene, render
from snapgen_deploy.models.tokenizer import WordTokenizer

_GRAMMAR = ["a", "an", "and", ",", "at", "the", "on", "background"]
WORDS = list(dict.fromkeys([*_GRAMMAR, *SIZES, *COLOURS, *SHAPES, *BACKGROUNDS, *" ".join([*PLACES, *RELATIONS]).split()]))


@dataclass
class Clock:
    """Progress of a stage, which ends when its minutes are spent, or after `steps` steps if given."""

    minutes: float
    steps: int | None = None
    done: int = 0
    start: float = field(default_factory=time.monotonic)

    def progress(self) -> float:
        """Progress from 0 to 1."""
        spent = (time.monotonic() - self.start) / 60 / self.minutes
        return min(max(spent, self.done / self.steps if self.steps else 0.0), 1.0)

    def ticks(self) -> Iterator[float]:
        """One item per training step: the progress."""
        while (now := self.progress()) < 1.0:
            yield now
            self.done += 1


@dataclass
class Log:
    """Appends rows {stage, step, seconds, ...} to a JSON-lines file and prints them on standard error."""

    path: Path
    stage: str
    clock: Clock
    every: int = 20
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, **values: Tensor | float) -> None:
        """Collect values; their means are written every `every` steps."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
            self.counts[name] = self.counts.get(name, 0) + 1
        if (self.clock.done + 1) % self.every == 0:
            seconds = round(time.monotonic() - self.clock.start, 1)
            means = {name: round(total / self.counts[name], 5) for name, total in self.sums.items()}
            row = {"stage": self.stage, "step": self.clock.done + 1, "seconds": seconds, **means}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), file=sys.stderr, flush=True)
            self.sums, self.counts = {}, {}


def learning_rate(progress: float, peak: float, warm_up: float = 0.02, last: float = 0.02) -> float:
    """Linear warm-up over the first `warm_up` of the budget, then a cosine down to `last` of the peak."""
    if progress < warm_up:
        return peak * (progress + 1e-3) / warm_up
    fall = (progress - warm_up) / (1 - warm_up)
    return peak * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * fall)))


def set_rate(optimisers: list[torch.optim.Optimizer], rate: float) -> None:
    """Set the learning rate of every group: `rate` times the group's `scale`, if it has one."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)


def tokenizer() -> WordTokenizer:
    """The tokenizer of the grammar."""
    return WordTokenizer.from_words(WORDS)


def scenes(seed: int, count: int, held_out: bool = False) -> list[tuple[PromptSpec, Scene]]:
    """`count` prompts of one split with scenes."""
    rng = np.random.default_rng([seed, int(held_out)])
    return [sample(rng, held_out) for _ in range(count)]


def pictures(drawn: list[Scene]) -> Tensor:
    """Render scenes to pictures (B, 3, 128, 128) in [-1, 1]."""
    stack = torch.from_numpy(np.stack([render(s) for s in drawn]))
    return stack.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_bytes(batch: Tensor) -> np.ndarray:
    """Convert pictures (B, 3, H, W) in [-1, 1] to (B, H, W, 3), uint8."""
    scaled = (batch.float().clamp(-1, 1) + 1) * 127.5
    array: np.ndarray = scaled.round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return array


def tokens_of(words: WordTokenizer, prompts: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Tokens (B, L) and mask (B, L) of prompts."""
    encoded = [words.encode(p, length) for p in prompts]
    return torch.tensor([t for t, _ in encoded]), torch.tensor([m for _, m in encoded])
