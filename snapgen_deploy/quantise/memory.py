"""Memory of a mixed-precision recipe: how many calls run together, and the predicted peak of its process.

At full scale the second moments of all layers take 20 GB, and the activations of all blocks as much, so both are held in parts.
"""

from __future__ import annotations

from torch import nn

from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.models.student import Student, TrainingCost
from snapgen_deploy.models.unfilled import without_storage
from snapgen_deploy.quantise.executors import Executor, Here
from snapgen_deploy.quantise.layers import WeightLayer, layers_of, matrix_of
from snapgen_deploy.system.host_memory import available_bytes

MOST_TOKENS = 2048  # image tokens that run together at most: activations of a full-scale student take gigabytes per call
MEASURED_CALLS = 8  # calls of the student that run together while layers are measured
TRAINING_BATCH = 16  # calls of one iteration of the tuning
MOMENTS = 1 << 30  # bytes of second moments that are held at once if little memory is free
KEPT = 2 << 30  # bytes of activations of all blocks that are kept for the gradients; above it, blocks recompute them
# Number of (tokens, hidden) maps of a pass that keeps none: fitted, like BASE, to `benchmarks.recipe_memory`.
PASSING = 36
BASE = 480_000_000  # of the process without a network
WORKER = 250_000_000  # of each worker process without its task (an estimate of what the imports take)
_WEIGHTS = 1.05  # bytes for each byte of the student's weights in fp32
# Bytes for each byte of the largest layer in fp32, while its palettes are fitted and its errors measured in double precision.
EVALUATED = 12


def together(tokens: int, most: int) -> int:
    """How many calls of so many image tokens run together: at most `most`, and at most `MOST_TOKENS` tokens (or one call).

    >>> together(256, 16)
    8
    """
    return max(1, min(most, MOST_TOKENS // tokens))


def moment_bytes(layer: WeightLayer) -> int:
    """Bytes of a layer's second moments (groups, columns, columns) in double precision."""
    groups, _, columns = matrix_of(layer, layer.weight).shape
    return 8 * groups * columns**2


def moments_at_once(student: nn.Module, executor: Executor) -> int:
    """Bytes of second moments to hold at once: half of the free memory, so that few passes are needed."""
    return _held(student, executor, available_bytes() or 0)


def _held(student: nn.Module, executor: Executor, free: int) -> int:
    largest = max(map(moment_bytes, layers_of(student).values()))
    return max(MOMENTS, largest, (free - _elsewhere(student, executor)) // 2)


def _elsewhere(student: nn.Module, executor: Executor) -> int:
    """Bytes that the executor's tasks take: their matrices, as much again for intermediate results, and its processes."""
    moments = max(map(moment_bytes, layers_of(student).values()))
    return executor.handed_out * 3 * moments + executor.workers * (WORKER + EVALUATED * _largest(student))


def _largest(student: nn.Module) -> int:
    """Bytes of the largest layer's weights in fp32."""
    return max(4 * layer.weight.numel() for layer in layers_of(student).values())


def recomputes(cost: TrainingCost, calls: int) -> bool:
    """Whether the activations of all blocks for so many calls take too much memory to be kept for the gradients."""
    return calls * sum(stage.kept for stage in cost.stages) > KEPT


def predicted_peak(
    config: ModelConfig, width: str, latent: tuple[int, int, int], executor: Executor | None = None, free: int = 0
) -> int:
    """Peak bytes of the recipe's process and of its executor (default: none): the larger of measuring and tuning.

    The more bytes are `free`, the more second moments are held (`moments_at_once`); the default gives the minimum.
    """
    spec = components_of(config).denoiser
    with without_storage():
        student = spec.build(width)
    assert isinstance(student, Student)
    cost = student.training_cost(latent[1:]).of_rows(spec.rows)
    weights = round(_WEIGHTS * 4 * sum(p.numel() for p in student.parameters()))
    moments = [moment_bytes(layer) for layer in layers_of(student).values()]
    # beside the sums, one batch's own product in single and double precision
    outside = executor or Here()
    held = min(sum(moments), _held(student, outside, free))
    tokens, hidden = cost.tokens, cost.hidden
    passing = 4 * PASSING * together(tokens, MEASURED_CALLS) * tokens * hidden
    measuring = held + passing + max(3 * max(moments) // 2, EVALUATED * _largest(student)) + _elsewhere(student, outside)
    calls = together(tokens, TRAINING_BATCH)
    if recomputes(cost, calls):  # every block's input, and all of one block
        inputs = sum(stage.depth for stage in cost.stages) * 4 * calls * tokens * hidden
        tuning = inputs + max(calls * stage.kept // stage.depth for stage in cost.stages if stage.depth)
    else:
        tuning = calls * sum(stage.kept for stage in cost.stages)
    return BASE + weights + max(measuring, tuning)
