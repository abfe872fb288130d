"""The stage that makes the recipe of mixed precision, or uses one that exists."""

from __future__ import annotations

import shutil

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.job.request import Request
from snapgen_deploy.job.state import ExportJob, MixedRecipe
from snapgen_deploy.plan.plan import ExportPlan
from snapgen_deploy.quantise.recipe import finished_recipe, recipes_root
from snapgen_deploy.quantise.stage import RecipeTask, run_stage


def known_recipe(request: Request, checkpoint: Checkpoint, plan: ExportPlan) -> MixedRecipe:
    """The plan's recipe, if an earlier export left it in the cache."""
    if plan.mixed is None or request.cache is None:
        return MixedRecipe()
    return MixedRecipe(finished_recipe(checkpoint, plan.width, plan.latent, plan.mixed, recipes_root()))


def mixed_recipe(job: ExportJob) -> MixedRecipe:
    """Make or find the plan's recipe, and copy it to the job's scratch folder: another export may evict it from the cache.

    Without a cache, the recipe is not kept.
    """
    request, plan, scratch = job.request, job.plan, job.stage.scratch
    if plan.mixed is None:
        return MixedRecipe()
    limit, root = (request.cache.limit, recipes_root()) if request.cache is not None else (None, scratch / "recipes")
    recipe, peak = finished_recipe(job.checkpoint, plan.width, plan.latent, plan.mixed, root), 0
    if recipe is None:
        task = RecipeTask(request.checkpoint, plan, request.executor, request.threads, root)
        recipe, peak = run_stage(task, job.counting, limit)
    return MixedRecipe(shutil.copytree(recipe, scratch / "recipe"), peak)
