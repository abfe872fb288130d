"""What the recipe of mixed precision holds in memory: how much runs together, and the peak of its process, predicted.

At full scale second moments of all layers take 20 GB and activations of all blocks as much, so that both are held in parts.
"""

from __future__ import annotations

import torch
from torch import nn

from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.models.student import Student, TrainingCost
from snapgen_deploy.quantise.executors import Executor, Here
from snapgen_deploy.quantise.layers import WeightLayer, layers_of, matrix_of
from snapgen_deploy.system.host_memory import available_bytes

MOST_TOKENS = 2048  # image tokens that run together at most: activations of a full-scale student take gigabytes a call
MEASURED_CALLS = 8  # calls of the student that run together while layers are measured
LESSON = 16  # calls of one iteration of the tuning
MOMENTS = 1 << 30  # bytes of second moments that are held at once, where little is free
KEPT = 2 << 30  # bytes of activations of all blocks that are kept for the gradients; beyond, blocks compute them again
# Maps of (tokens, hidden) of a pass that keeps none: fitted, as BASE, to `benchmarks.recipe_memory`.
PASSING = 36
BASE = 480_000_000  # of the process without a network
WORKER = 250_000_000  # of each process of an executor without its task (an estimate: what the imports take)
_WEIGHTS = 1.05  # bytes for each byte of the student's weights in fp32
# For each byte of the largest layer in fp32: its palettes are fitted and errors found, in double precision.
EVALUATED = 12


def together(tokens: int, most: int) -> int:
    """How many calls of so many image tokens run together: at most `most`, and at most `MOST_TOKENS` tokens (or one call)."""
    return max(1, min(most, MOST_TOKENS // tokens))


def moment_bytes(layer: WeightLayer) -> int:
    """Bytes of a layer's second moments (groups, columns, columns) in double precision."""
    groups, _, columns = matrix_of(layer, layer.weight).shape
    return 8 * groups * columns**2


def moments_at_once(student: nn.Module, executor: Executor) -> int:
    """Bytes of second moments to hold together: half of what this computer has free, so that few passes are made."""
    return _held(student, executor, available_bytes() or 0)


def _held(student: nn.Module, executor: Executor, free: int) -> int:
    largest = max(map(moment_bytes, layers_of(student).values()))
    return max(MOMENTS, largest, (free - _elsewhere(student, executor)) // 2)


def _elsewhere(student: nn.Module, executor: Executor) -> int:
    """Of layers that are with the executor: their matrices, and as much for what is computed of them; and its processes."""
    moments = max(map(moment_bytes, layers_of(student).values()))
    return executor.handed_out * 3 * moments + executor.workers * (WORKER + EVALUATED * _largest(student))


def _largest(student: nn.Module) -> int:
    """Bytes of the largest layer's weights in fp32."""
    return max(4 * layer.weight.numel() for layer in layers_of(student).values())


def recomputes(cost: TrainingCost, calls: int) -> bool:
    """Whether activations of all blocks for some calls are too many to be kept for the gradients."""
    return calls * sum(stage.kept for stage in cost.stages) > KEPT


def predicted_peak(
    config: ModelConfig, width: str, latent: tuple[int, int, int], executor: Executor | None = None, free: int = 0
) -> int:
    """Bytes that the recipe's process and its executor's (none when left out) need here: the larger of measuring and tuning.

    More second moments are held where many bytes are `free` (`moments_at_once`); by default what it cannot do without.
    """
    with torch.device("meta"):
        student = components_of(config).denoiser.build(width)
    assert isinstance(student, Student)
    cost = student.training_cost(latent[1:])
    weights = round(_WEIGHTS * 4 * sum(p.numel() for p in student.parameters()))
    moments = [moment_bytes(layer) for layer in layers_of(student).values()]
    # beside the sums, one batch's own product in single and double precision
    outside = executor or Here()
    held = min(sum(moments), _held(student, outside, free))
    tokens, hidden = cost.tokens, cost.hidden
    passing = 4 * PASSING * together(tokens, MEASURED_CALLS) * tokens * hidden
    measuring = held + passing + max(3 * max(moments) // 2, EVALUATED * _largest(student)) + _elsewhere(student, outside)
    calls = together(tokens, LESSON)
    if recomputes(cost, calls):  # every block's input, and all of one block
        inputs = sum(stage.depth for stage in cost.stages) * 4 * calls * tokens * hidden
        tuning = inputs + max(calls * stage.kept // stage.depth for stage in cost.stages if stage.depth)
    else:
        tuning = calls * sum(stage.kept for stage in cost.stages)
    return BASE + weights + max(measuring, tuning)
