"""Self-distillation of a quantised student: weights stay frozen, biases, norms and modulation learn to make up for them.

The teacher is the fp32 student on its own recorded trajectories, so that a lesson costs no call of the teacher. Everything is a
function of the number of the iteration (lessons, learning rate), and state is saved as a whole, so that a run that was killed
goes on as if it had not been. One lesson in eight is held out: tuned values that do not help there are not used.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from snapgen_deploy.drawing.prompts import Sample
from snapgen_deploy.errors import BadInput, GateFailed
from snapgen_deploy.models import Student
from snapgen_deploy.quantise import memory
from snapgen_deploy.quantise.network import tunable
from snapgen_deploy.quantise.sensitivity import ask, call_groups, cost_of
from snapgen_deploy.quantise.trajectories import Trajectories

HELD_OUT = 8  # every eighth prompt, or picture
SAVE = 25  # iterations between two saved states
STATE = "tuning.pt"
_Call = tuple[int, int]  # sample, step


@dataclass(frozen=True)
class Tuning:
    """How to tune."""

    iterations: int
    batch: int = memory.LESSON
    rate: float = 4e-3  # at the peak; the last is a hundredth of it
    seed: int = 0


@dataclass(frozen=True)
class TunedNetwork:
    """Values of the tunable parameters, and how it went: errors are mean squares relative to the velocities' own."""

    values: dict[str, Tensor]
    losses: tuple[float, ...]  # of every iteration, on its lesson
    before: float  # on the held-out lessons
    after: float

    @property
    def helped(self) -> bool:
        """Whether the held-out error fell; where not, `values` are the ones from before."""
        return self.after < self.before


def held_out(samples: Sequence[Sample]) -> frozenset[int]:
    """Which pictures nothing is learned from: all of every eighth prompt, so that no words of theirs are learned either.

    With fewer prompts than that, every eighth picture.
    """
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(s.prompt for s in samples))}
    of = [number[s.prompt] for s in samples] if len(number) >= HELD_OUT else range(len(samples))
    return frozenset(i for i, n in enumerate(of) if n % HELD_OUT == HELD_OUT - 1)


def tune_network(
    student: Student,
    trajectories: Trajectories,
    settings: Tuning,
    folder: Path,
    note: Callable[[int, float], None] = lambda i, e: None,
) -> TunedNetwork:
    """Tune a quantised student in place, or take up what a run with the same settings left in `folder`.

    `note` hears every iteration's number and loss. The caller keys `folder` by what decides the result: the student, the
    trajectories, the settings. Raises GateFailed where a loss is not finite, BadInput where there are too few pictures.
    """
    kept = held_out(trajectories.samples)
    held = [c for c in _calls(trajectories) if c[0] in kept]
    lessons = [c for c in _calls(trajectories) if c[0] not in kept]
    if not held:
        raise BadInput(f"tuning: got {len(trajectories.samples)} calibration pictures, expected at least {HELD_OUT}")
    student.requires_grad_(False)
    parameters = tunable(student)
    start = {name: p.detach().clone() for name, p in parameters.items()}
    before = error(student, trajectories, held)
    for p in parameters.values():
        p.requires_grad_(True)
    optimiser = torch.optim.Adam(list(parameters.values()), lr=settings.rate, betas=(0.9, 0.99))
    losses = _load(folder / STATE, parameters, optimiser)
    for iteration in range(len(losses), settings.iterations):
        for group in optimiser.param_groups:
            group["lr"] = rate(settings, iteration)
        calls = lesson(settings, iteration, lessons)
        optimiser.zero_grad(set_to_none=True)
        losses.append(float(f"{learn(student, trajectories, calls):.6g}"))
        optimiser.step()
        if not math.isfinite(losses[-1]):
            raise GateFailed(
                f"tuning: the loss of iteration {iteration + 1} is not finite; the checkpoint or palettes are broken"
            )
        if (iteration + 1) % SAVE == 0 or iteration + 1 == settings.iterations:
            _save(folder / STATE, parameters, optimiser, losses)
        note(iteration + 1, losses[-1])
    for p in parameters.values():
        p.requires_grad_(False)
    after = error(student, trajectories, held)
    if not after < before:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(start[name])
    return TunedNetwork({name: p.detach().clone() for name, p in parameters.items()}, tuple(losses), before, after)


def learn(student: Student, trajectories: Trajectories, calls: Sequence[_Call]) -> float:
    """Add the gradients of one lesson's mean error; returns the error. Parts of a lesson follow one another at full scale."""
    total = 0.0
    parts = call_groups(calls, student, trajectories, len(calls))
    with _recomputing(student, memory.recomputes(cost_of(student, trajectories), len(parts[0]))):
        for part in parts:
            error = _relative(ask(student, trajectories, part), _velocities(trajectories, part)) * (len(part) / len(calls))
            error.backward()
            total += float(error.detach())
    return total


@contextmanager
def _recomputing(student: Student, wanted: bool) -> Iterator[None]:
    """While this lasts, blocks keep no activations but compute them again for their gradients."""
    blocks = student.recomputable() if wanted else []
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own again


def rate(settings: Tuning, iteration: int) -> float:
    """Learning rate: a short warm-up, then a cosine down to a hundredth."""
    warm = min(20, max(1, settings.iterations // 10))
    if iteration < warm:
        return settings.rate * (iteration + 1) / warm
    fall = (iteration - warm) / max(1, settings.iterations - warm)
    return settings.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))


def lesson(settings: Tuning, iteration: int, calls: Sequence[_Call]) -> list[_Call]:
    """The lesson of an iteration: all calls once in a new order, over and over."""
    found = []
    for place in range(iteration * settings.batch, (iteration + 1) * settings.batch):
        turn, number = divmod(place, len(calls))
        order = np.random.default_rng([settings.seed, turn]).permutation(len(calls))
        found.append(calls[int(order[number])])
    return found


@torch.no_grad()
def error(student: Student, trajectories: Trajectories, calls: Sequence[_Call]) -> float:
    """Mean over calls of the squared error, relative to the mean square of what the fp32 student answered; six digits."""
    parts = call_groups(calls, student, trajectories, 16)
    sums = [float(_relative(ask(student, trajectories, p), _velocities(trajectories, p))) * len(p) for p in parts]
    return float(f"{sum(sums) / len(calls):.6g}")


def _relative(got: Tensor, wanted: Tensor) -> Tensor:
    """Mean over the batch of |got - wanted|^2 / |wanted|^2; both (B, C, h, w)."""
    difference = (got - wanted).square().flatten(1).sum(1)
    return (difference / wanted.square().flatten(1).sum(1).clamp(min=1e-12)).mean()


def _calls(trajectories: Trajectories) -> list[_Call]:
    return [(p, s) for p in range(len(trajectories.samples)) for s in range(trajectories.steps)]


def _velocities(trajectories: Trajectories, calls: Sequence[_Call]) -> Tensor:
    return torch.from_numpy(np.concatenate([trajectories.velocity(*call) for call in calls]))


def _save(path: Path, parameters: dict[str, Tensor], optimiser: torch.optim.Optimizer, losses: list[float]) -> None:
    """Whole or not at all, so that a kill at any moment leaves a state to go on from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    state = {"values": {n: p.detach() for n, p in parameters.items()}, "optimiser": optimiser.state_dict()}
    torch.save(state | {"losses": json.dumps(losses)}, part)
    part.replace(path)


def _load(path: Path, parameters: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> list[float]:
    """Losses of the iterations that are done; parameters and optimiser are where these left them."""
    if not path.is_file():
        return []
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(state["values"][name])
    optimiser.load_state_dict(state["optimiser"])
    losses: list[float] = json.loads(state["losses"])
    return losses
