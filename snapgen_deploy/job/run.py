"""The main job: checkpoint and plan in, verified bundle out. Each stage runs in its own process and shows its progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from snapgen_deploy.bundle.reader import Bundle, open_bundle
from snapgen_deploy.bundle.signature import sign
from snapgen_deploy.check.gates import Gate, failed
from snapgen_deploy.drawing.ports import roles_of
from snapgen_deploy.job.begin import begun
from snapgen_deploy.job.checked import check_files, judge_fidelity, refuse_failed
from snapgen_deploy.job.convert import Conversion, convert_component
from snapgen_deploy.job.drawn import draw_for_fidelity, reference_vectors
from snapgen_deploy.job.golden import golden_gates, with_libraries_vectors
from snapgen_deploy.job.keep import kept
from snapgen_deploy.job.layout import arranged
from snapgen_deploy.job.mixed import mixed_recipe
from snapgen_deploy.job.request import Request
from snapgen_deploy.job.speed_estimate import EstimateSpeed
from snapgen_deploy.job.state import ExportJob, Made, MixedRecipe, Reference, TargetResult
from snapgen_deploy.job.write import write_bundle
from snapgen_deploy.plan.plan import ExportPlan, TargetPlan
from snapgen_deploy.system.progress import Counting, Progress, silent
from snapgen_deploy.system.side_by_side import run_all


@dataclass(frozen=True)
class Result:
    """What an export wrote."""

    bundle: Bundle
    gates: tuple[Gate, ...]
    peak_bytes: int  # peak memory of the largest process
    run: Mapping[str, Any]  # where components came from, memory and time of each stage, as in the bundle's export_run.json


def run_export(
    request: Request, plan: ExportPlan, *, estimate_speed: EstimateSpeed, progress: Progress, counting: Counting = silent
) -> Result:
    """Export, run the saved files, compare them with the reference, and publish the bundle only if every gate passed.

    Args:
        request: Where to read and write, what to draw.
        plan: What to export.
        estimate_speed: Estimates the speed for the manifest.
        progress: Shows the stage that runs.
        counting: Shows how far the recipe of mixed precision is.

    Raises:
        BadInput: if the checkpoint, a file, a place or the key cannot be used.
        Refused: if this computer lacks the memory, or a target cannot take a graph.
        GatesFailed: if a gate failed; there is no bundle then.
    """
    with begun(request, plan, estimate_speed=estimate_speed, progress=progress, counting=counting) as begun_job:
        job = with_libraries_vectors(begun_job)
        golden = golden_gates(job)
        recipe = mixed_recipe(job)
        reference = reference_vectors(job, recipe)
        drawing = max(reference.peak_bytes, draw_for_fidelity(job))
        targets = export_targets(job, recipe, reference)
        refuse_failed(targets)
        made = Made(recipe, reference, drawing, targets, golden)
        with progress("writing the bundle"):
            run = write_bundle(job, made)
            if request.sign is not None:
                sign(job.stage.root, request.sign, job.stage.final.name)
            job.stage.publish(request.overwrite)
    return Result(open_bundle(job.stage.final), tuple(made.gates), made.peak_bytes, run)


def export_targets(job: ExportJob, recipe: MixedRecipe, reference: Reference) -> dict[str, TargetResult]:
    """Every target's components and checks; conversions run side by side where the job has room for several."""
    pieces = [partial(export_target, job, target, recipe, reference) for target in job.plan.targets]
    results = run_all(job.room, pieces)
    return {target.key: result for target, result in zip(job.plan.targets, results, strict=True)}


def export_target(job: ExportJob, target: TargetPlan, recipe: MixedRecipe, reference: Reference) -> TargetResult:
    """Convert a target's components, run the saved files, compare them with the reference; cache them if the gates passed."""
    with kept(job.request.cache, job.checkpoint, job.request.stamps) as keep:
        work, roles = Conversion(job, recipe, target, keep), roles_of(job.checkpoint.config)
        converted = run_all(job.room, [partial(convert_component, work, role) for role in roles])
        parts = arranged(job, target, dict(zip(roles, converted, strict=True)))
        checked = check_files(job, target, parts, reference)
        result = TargetResult(parts, checked, judge_fidelity(job, target, parts))
        keep.sound = not failed(result.gates)
    return result
