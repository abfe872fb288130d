"""Self-distillation of a quantised student: weights stay frozen; biases, norms and modulation are trained to compensate.

The teacher is the fp32 student on its own recorded trajectories, so that training needs no call of the teacher. Batches and
learning rate depend only on the number of the iteration, and the state is saved atomically, so that a killed run resumes with
the same result. One prompt in eight is held out: tuned values that do not help there are discarded.
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
from snapgen_deploy.quantise.sensitivity import call_groups, cost_of, velocities_of
from snapgen_deploy.quantise.trajectories import Trajectories

HELD_OUT = 8  # every eighth prompt, or picture
SAVE = 25  # iterations between two saved states
STATE = "tuning.pt"
_Call = tuple[int, int]  # sample, step


@dataclass(frozen=True)
class Tuning:
    """Hyperparameters of the tuning."""

    iterations: int
    batch: int = memory.TRAINING_BATCH
    rate: float = 4e-3  # at the peak; the last is a hundredth of it
    seed: int = 0


@dataclass(frozen=True)
class TunedNetwork:
    """Values of the tunable parameters, and the errors: mean squares relative to those of the velocities."""

    values: dict[str, Tensor]
    losses: tuple[float, ...]  # of every iteration, on its batch
    before: float  # on the held-out calls
    after: float

    @property
    def helped(self) -> bool:
        """Whether the held-out error fell; if not, `values` are the untuned ones."""
        return self.after < self.before


def held_out(samples: Sequence[Sample]) -> frozenset[int]:
    """The pictures that are held out of the training: all of every eighth prompt, so that its words are held out, too.

    With fewer than eight prompts, every eighth picture.
    """
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(s.prompt for s in samples))}
    of = [number[s.prompt] for s in samples] if len(number) >= HELD_OUT else range(len(samples))
    return frozenset(i for i, n in enumerate(of) if n % HELD_OUT == HELD_OUT - 1)


def tune_network(
    student: Student,
    trajectories: Trajectories,
    settings: Tuning,
    folder: Path,
    on_iteration: Callable[[int, float], None] = lambda i, e: None,
) -> TunedNetwork:
    """Tune a quantised student in place, resuming from the state in `folder` if there is one.

    `on_iteration` gets every iteration's number and loss. `folder` must be unique to the student, the trajectories and the
    settings.

    Raises:
        BadInput: if there are fewer than `HELD_OUT` pictures.
        GateFailed: if a loss is not finite.
    """
    kept = held_out(trajectories.samples)
    held = [c for c in _calls(trajectories) if c[0] in kept]
    training = [c for c in _calls(trajectories) if c[0] not in kept]
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
        calls = training_batch(settings, iteration, training)
        optimiser.zero_grad(set_to_none=True)
        losses.append(float(f"{accumulate_gradients(student, trajectories, calls):.6g}"))
        optimiser.step()
        if not math.isfinite(losses[-1]):
            raise GateFailed(
                f"tuning: the loss of iteration {iteration + 1} is not finite; the checkpoint or palettes are broken"
            )
        if (iteration + 1) % SAVE == 0 or iteration + 1 == settings.iterations:
            _save(folder / STATE, parameters, optimiser, losses)
        on_iteration(iteration + 1, losses[-1])
    for p in parameters.values():
        p.requires_grad_(False)
    after = error(student, trajectories, held)
    if not after < before:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(start[name])
    return TunedNetwork({name: p.detach().clone() for name, p in parameters.items()}, tuple(losses), before, after)


def accumulate_gradients(student: Student, trajectories: Trajectories, calls: Sequence[_Call]) -> float:
    """Add the gradients of a batch's mean error; returns the error. At full scale the batch is split into parts."""
    total = 0.0
    parts = call_groups(calls, student, trajectories, len(calls))
    with _recomputing(student, memory.recomputes(cost_of(student, trajectories), len(parts[0]))):
        for part in parts:
            error = _relative(velocities_of(student, trajectories, part), _recorded(trajectories, part)) * (
                len(part) / len(calls)
            )
            error.backward()
            total += float(error.detach())
    return total


@contextmanager
def _recomputing(student: Student, wanted: bool) -> Iterator[None]:
    """Within the block, the student's blocks recompute their activations for the gradients (activation checkpointing)."""
    blocks = student.recomputable() if wanted else []
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # restores the class's method


def rate(settings: Tuning, iteration: int) -> float:
    """Learning rate: a short warm-up, then a cosine down to a hundredth."""
    warm = min(20, max(1, settings.iterations // 10))
    if iteration < warm:
        return settings.rate * (iteration + 1) / warm
    fall = (iteration - warm) / max(1, settings.iterations - warm)
    return settings.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))


def training_batch(settings: Tuning, iteration: int, calls: Sequence[_Call]) -> list[_Call]:
    """The batch of an iteration: epochs over all calls, each in a new order."""
    found = []
    for place in range(iteration * settings.batch, (iteration + 1) * settings.batch):
        turn, number = divmod(place, len(calls))
        order = np.random.default_rng([settings.seed, turn]).permutation(len(calls))
        found.append(calls[int(order[number])])
    return found


@torch.no_grad()
def error(student: Student, trajectories: Trajectories, calls: Sequence[_Call]) -> float:
    """Mean over calls of the squared error, relative to the mean square of the fp32 student's velocity; six digits."""
    parts = call_groups(calls, student, trajectories, 16)
    sums = [float(_relative(velocities_of(student, trajectories, p), _recorded(trajectories, p))) * len(p) for p in parts]
    return float(f"{sum(sums) / len(calls):.6g}")


def _relative(got: Tensor, wanted: Tensor) -> Tensor:
    """Mean over the batch of |got - wanted|^2 / |wanted|^2; both (B, C, h, w)."""
    difference = (got - wanted).square().flatten(1).sum(1)
    return (difference / wanted.square().flatten(1).sum(1).clamp(min=1e-12)).mean()


def _calls(trajectories: Trajectories) -> list[_Call]:
    return [(p, s) for p in range(len(trajectories.samples)) for s in range(trajectories.steps)]


def _recorded(trajectories: Trajectories, calls: Sequence[_Call]) -> Tensor:
    return torch.from_numpy(np.concatenate([trajectories.velocity(*call) for call in calls]))


def _save(path: Path, parameters: dict[str, Tensor], optimiser: torch.optim.Optimizer, losses: list[float]) -> None:
    """Write the state atomically, so that a kill at any moment leaves a state to resume from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    state = {"values": {n: p.detach() for n, p in parameters.items()}, "optimiser": optimiser.state_dict()}
    torch.save(state | {"losses": json.dumps(losses)}, part)
    part.replace(path)


def _load(path: Path, parameters: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> list[float]:
    """Losses of the iterations that are done; parameters and optimiser are where these left them.

    None are done, and both stay as they are, where the file is damaged.
    """
    if not path.is_file():
        return []
    try:
        state = torch.load(path, weights_only=True)
        values = {name: state["values"][name].reshape(p.shape).to(p.dtype) for name, p in parameters.items()}
        losses = [float(loss) for loss in json.loads(state["losses"])]
        optimiser.load_state_dict(state["optimiser"])
    except Exception:  # torch raises a dozen kinds for a damaged file; what was tuned is tuned again
        return []
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(values[name])
    return losses
