"""The recipe as a stage of an export: in a child process, with its progress told to the parent."""

from __future__ import annotations

from pathlib import Path

from snapgen_deploy.checkpoint import open_checkpoint
from snapgen_deploy.plan.plan import ExportPlan
from snapgen_deploy.quantise.executors import executor_of
from snapgen_deploy.quantise.recipe import keep_within, make_recipe
from snapgen_deploy.system.child import run_in_child
from snapgen_deploy.system.progress import Counting, Tell


def run_stage(
    checkpoint: Path | None,
    key_map: Path | None,
    plan: ExportPlan,
    executor: str,
    threads: int,
    root: Path,
    counting: Counting,
    limit: int | None = None,
) -> tuple[Path, int]:
    """The folder of the plan's recipe below `root`, and the peak resident bytes of the process that made it.

    `executor` as `executors.executor_of` takes it, `threads` of torch in the child's own passes and the tuning. What lies
    longest unused below `root` is removed beyond `limit` bytes.
    """
    with counting() as tell:
        made, peak = run_in_child("mixed precision", _make, checkpoint, key_map, plan, executor, threads, root, tell=tell)
    if limit is not None:
        keep_within(root, limit, made)
    return made, peak


def _make(
    checkpoint: Path | None, key_map: Path | None, plan: ExportPlan, executor: str, threads: int, root: Path, tell: Tell
) -> Path:
    """In the child process."""
    import torch

    assert plan.mixed is not None
    torch.set_num_threads(threads)
    opened = open_checkpoint(checkpoint, key_map)
    return make_recipe(opened, plan.width, plan.latent, plan.mixed, executor_of(executor), root, tell)
