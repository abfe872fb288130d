"""The error of each layer's output when its weights alone become a palette (SnapGen++, supplement C).

The reference student runs over the recorded trajectories once per group of layers whose second moments fit in memory; each
layer's evaluation (fit palettes, measure the output's error) is one task for an executor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.student import Student, TrainingCost
from snapgen_deploy.quantise.executors import Executor
from snapgen_deploy.quantise.layers import WeightLayer, layers_of, matrix_of, moments, output_mse
from snapgen_deploy.quantise.memory import MEASURED_CALLS, MOMENTS, moment_bytes, together
from snapgen_deploy.quantise.palettes import fit_palette, snap
from snapgen_deploy.quantise.trajectories import Trajectories
from snapgen_deploy.system.typed import Count, Number

# A layer has at most a few thousand inputs, and every token is a row: ten times as many rows are enough for second moments. A
# picture at full scale has thousands of tokens, so few pictures are enough; the minimum is for the sake of different prompts.
ROWS = 65_536
FEWEST_MEASURED, MOST_MEASURED = 8, 32


@dataclass(frozen=True)
class Task:
    """One layer's evaluation: its weight as a matrix (g, rows, columns) and its inputs' second moments."""

    name: str
    matrix: np.ndarray
    second: np.ndarray
    levels: tuple[int, ...]  # bits


@dataclass(frozen=True)
class Sensitivity:
    """The result for one layer. `errors` and `palettes` by the number of bits."""

    name: str
    weights: Count
    power: Number  # mean square of the layer's output without its bias
    errors: Mapping[int, Number]  # mean square of the output's change
    palettes: Mapping[int, tuple[Number, ...]]

    def fits(self, weights: int, levels: Sequence[int]) -> bool:
        """Whether it can be that of a layer of so many weights, at these levels."""
        sizes = {bits: len(palette) for bits, palette in self.palettes.items()}
        return (
            self.weights == weights
            and set(self.errors) == set(sizes) == set(levels)
            and all(0 < size <= 2**bits for bits, size in sizes.items())
        )

    def as_dict(self) -> dict[str, object]:
        """Plain JSON data."""
        return asdict(self)


def evaluate(task: Task) -> Sensitivity:
    """Fit a palette at every level and measure the error of the layer's output."""
    palettes = {bits: fit_palette(task.matrix, 2**bits) for bits in task.levels}
    return Sensitivity(
        name=task.name,
        weights=task.matrix.size,
        power=output_mse(task.matrix, task.second),
        errors={b: output_mse(task.matrix - snap(task.matrix, p), task.second) for b, p in palettes.items()},
        palettes={b: tuple(float(v) for v in p) for b, p in palettes.items()},
    )


def measured_pictures(student: Student, trajectories: Trajectories) -> int:
    """How many of the recorded pictures sensitivities are measured on."""
    enough = math.ceil(ROWS / (trajectories.steps * cost_of(student, trajectories).tokens))
    return min(len(trajectories.samples), max(FEWEST_MEASURED, min(MOST_MEASURED, enough)))


def measure_sensitivities(
    student: Student,
    trajectories: Trajectories,
    pictures: int,
    levels: Sequence[int],
    executor: Executor,
    *,
    known: Sequence[Sensitivity] = (),
    memory: int = MOMENTS,
    on_layer: Callable[[Sensitivity], None] = lambda found: None,
) -> dict[str, Sensitivity]:
    """Every layer's sensitivity on the first `pictures` trajectories; those in `known` are not measured again.

    `on_layer` gets each as it is found, in the network's order.

    Raises:
        BadInput: if a layer's weights or inputs are not finite.
    """
    found = {s.name: s for s in known}
    missing = [name for name in layers_of(student) if name not in found]
    for sensitivity in executor.map(evaluate, _tasks(student, trajectories, pictures, tuple(levels), missing, memory)):
        if not all(math.isfinite(e) for e in (sensitivity.power, *sensitivity.errors.values())):
            raise BadInput(f"sensitivity of {sensitivity.name} is not finite: its inputs on the calibration prompts are broken")
        found[sensitivity.name] = sensitivity
        on_layer(sensitivity)
    return {name: found[name] for name in layers_of(student)}


def _tasks(
    student: Student, trajectories: Trajectories, pictures: int, levels: tuple[int, ...], names: Sequence[str], memory: int
) -> Iterator[Task]:
    """Tasks in the network's order, group by group; each group is one pass over the trajectories."""
    layers = layers_of(student)
    for group in _groups({name: layers[name] for name in names}, memory):
        second = moments(student, group, lambda: _run(student, trajectories, pictures))
        for name in group:
            matrix = matrix_of(layers[name], layers[name].weight.detach()).contiguous().numpy()
            if not np.isfinite(matrix).all():
                raise BadInput(f"weights of {name} are not finite")
            yield Task(name, matrix, second.pop(name), levels)


def _groups(layers: Mapping[str, WeightLayer], memory: int) -> Iterator[list[str]]:
    """Neighbouring layers whose second moments fit into `memory` bytes together; a larger one stands alone."""
    group: list[str] = []
    held = 0
    for name, layer in layers.items():
        needed = moment_bytes(layer)
        if group and held + needed > memory:
            yield group
            group, held = [], 0
        group.append(name)
        held += needed
    if group:
        yield group


@torch.no_grad()
def _run(student: Student, trajectories: Trajectories, pictures: int) -> None:
    """Every step of the first trajectories, in batches."""
    calls = [(p, s) for p in range(min(pictures, len(trajectories.samples))) for s in range(trajectories.steps)]
    for part in call_groups(calls, student, trajectories, MEASURED_CALLS):
        velocities_of(student, trajectories, part)


def call_groups(
    calls: Sequence[tuple[int, int]], student: Student, trajectories: Trajectories, most: int
) -> list[Sequence[tuple[int, int]]]:
    """The calls in parts that run together, as many as `memory.together` allows."""
    count = together(cost_of(student, trajectories).tokens, most)
    return [calls[i : i + count] for i in range(0, len(calls), count)]


def cost_of(student: Student, trajectories: Trajectories) -> TrainingCost:
    """What one call of the student holds in memory."""
    height, width = trajectories.arrays["latents"].shape[-2:]
    return student.training_cost((height, width)).of_rows(trajectories.rows)


def velocities_of(student: Student, trajectories: Trajectories, calls: Sequence[tuple[int, int]]) -> torch.Tensor:
    """The student's velocities (B, C, h, w) at (sample, step) pairs."""
    rows = [trajectories.student(*call) for call in calls]
    x = {name: torch.from_numpy(np.concatenate([row[name] for row in rows])) for name in rows[0]}
    spec = trajectories.components.denoiser
    return spec.run(student, x)[spec.output]
