"""The recipe as a stage of an export: in a child process that reports its progress."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from snapgen_deploy.checkpoint import CheckpointPlace
from snapgen_deploy.plan.plan import ExportPlan
from snapgen_deploy.quantise.executors import executor_of
from snapgen_deploy.quantise.recipe import keep_within, make_recipe
from snapgen_deploy.system.child import run_in_child
from snapgen_deploy.system.progress import Counting, OnStep


@dataclass(frozen=True)
class RecipeTask:
    """The input of the child process that makes a recipe."""

    checkpoint: CheckpointPlace
    plan: ExportPlan
    executor: str  # as `executors.executor_of` takes it
    threads: int  # of torch in the process's own passes and the tuning
    root: Path  # where recipes are kept


def run_stage(task: RecipeTask, counting: Counting, limit: int | None = None) -> tuple[Path, int]:
    """The folder of the plan's recipe below `task.root`, and the peak resident bytes of the process that made it.

    The least recently used stages below the root are removed until `limit` bytes are left.
    """
    with counting() as on_step:
        made, peak = run_in_child("mixed precision", _make, task, on_progress=on_step)
    if limit is not None:
        keep_within(task.root, limit, made)
    return made, peak


def _make(task: RecipeTask, on_progress: OnStep) -> Path:
    """In the child process."""
    import torch

    plan = task.plan
    assert plan.mixed is not None
    torch.set_num_threads(task.threads)
    opened = task.checkpoint.open()
    return make_recipe(opened, plan.width, plan.latent, plan.mixed, executor_of(task.executor), task.root, report=on_progress)
