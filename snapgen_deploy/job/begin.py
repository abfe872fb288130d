"""The start of an export: everything that can be refused is refused before work starts; then a place to build the bundle."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from snapgen_deploy import __version__
from snapgen_deploy.bundle.reader import bundle_name
from snapgen_deploy.checkpoint import Checkpoint, validate_values
from snapgen_deploy.checkpoint.unchanged import refuse_changed
from snapgen_deploy.errors import BadInput
from snapgen_deploy.job.cache import tool_versions
from snapgen_deploy.job.calibration import calibration_key
from snapgen_deploy.job.convert import all_cached
from snapgen_deploy.job.ingredients import Ingredients
from snapgen_deploy.job.memory import Prediction, by_process, predict, refuse_what_does_not_fit
from snapgen_deploy.job.mixed import known_recipe
from snapgen_deploy.job.records import remove_unowned
from snapgen_deploy.job.request import Request
from snapgen_deploy.job.speed_estimate import EstimateSpeed
from snapgen_deploy.job.staging import check_place, left_by_others, staging, usable_folder
from snapgen_deploy.job.state import ExportJob, MixedRecipe
from snapgen_deploy.plan.plan import ExportPlan
from snapgen_deploy.system.child import preload
from snapgen_deploy.system.files import files_under, temporary_files_in
from snapgen_deploy.system.host_memory import available_bytes
from snapgen_deploy.system.progress import Counting, Progress
from snapgen_deploy.system.side_by_side import room_for
from snapgen_deploy.system.source import source_sha256

IN_EVERY_CHILD = ("torch", "torch._dynamo", "snapgen_deploy.job.run")  # modules that every stage's process needs


@contextmanager
def begun(
    request: Request, plan: ExportPlan, *, estimate_speed: EstimateSpeed, progress: Progress, counting: Counting
) -> Iterator[ExportJob]:
    """Begin an export: check what can be checked before work starts, and open a directory to build the bundle in.

    Raises:
        BadInput: if the bundle exists and must not be overwritten, the checkpoint was changed or has values that are not
            finite, a file cannot be written, or the disk is too full.
        Refused: if this computer does not have enough memory.
    """
    checkpoint, final = _refuse_early(request, plan)
    preload(IN_EVERY_CHILD)
    with progress("checking the checkpoint"):
        validate_values(checkpoint)
    speed_estimates = {size: estimate_speed(checkpoint.config, plan.at(size)) for size in plan.sizes}
    golden = (request.golden.sha256 if request.golden is not None else "") + ("libraries" * request.hold_to_libraries)
    key = _plan_key(checkpoint, plan, calibration_key(request.calibration, plan) + golden + "".join(request.check_on))
    with (
        staging(final, key, overwrite=request.overwrite, resume=request.resume) as stage,
        temporary_files_in(stage.scratch),  # those of this process and of all that it starts
    ):
        remove_unowned(stage.root)
        _check_space(final.parent, (stage.root,), checkpoint, plan)
        predicted = predict(checkpoint.config, plan, request.executor)
        yield ExportJob(
            request,
            plan,
            checkpoint,
            speed_estimates,
            stage=stage,
            progress=progress,
            counting=counting,
            room=room_for([p.bytes for p in predicted], request.threads),
            predicted=by_process(predicted),
        )


def refuse_what_cannot_begin(request: Request, plan: ExportPlan, progress: Progress) -> None:
    """Refuse, for a dry run, whatever `begun` would refuse; nothing is left on the disk.

    Raises:
        BadInput, Refused: as `begun`.
    """
    checkpoint, final = _refuse_early(request, plan)
    with usable_folder(final.parent):
        _check_space(final.parent, left_by_others(final) if request.resume else (), checkpoint, plan)
    with progress("checking the checkpoint"):
        validate_values(checkpoint)


def _refuse_early(request: Request, plan: ExportPlan) -> tuple[Checkpoint, Path]:
    """What can be refused at once; returns the checkpoint and where its bundle goes.

    The checkpoint's header was validated before the plan was made. It need not be again: the file is still the same.
    """
    checkpoint = request.checkpoint.open()
    refuse_changed(checkpoint, request.stamps)
    final = request.output_dir / bundle_name(checkpoint.config.name, plan.device)
    check_place(final, request.overwrite)
    _check_memory(request, checkpoint, plan)
    return checkpoint, final


def _plan_key(checkpoint: Checkpoint, plan: ExportPlan, calibration: str) -> str:
    """Content key of an export: the same key means the same bytes. The times that `--tune` measured do not change them."""
    data = asdict(plan) | {"reasons": (), "targets": [asdict(t) | {"form_ms": ()} for t in plan.targets]}
    parts = [__version__, source_sha256(), tool_versions(), checkpoint.sha256(), data, calibration]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_memory(request: Request, checkpoint: Checkpoint, plan: ExportPlan) -> None:
    """Refuse before work starts if this computer lacks the memory for the largest process that still has to run."""
    wanted, available = predict(checkpoint.config, plan, request.executor), available_bytes()
    if available is not None and any(p.bytes > available for p in wanted):
        recipe = known_recipe(request, checkpoint, plan)
        wanted = tuple(p for p in wanted if not _is_done(p, request, checkpoint, plan, recipe))
    refuse_what_does_not_fit(wanted, available)


def _is_done(prediction: Prediction, request: Request, checkpoint: Checkpoint, plan: ExportPlan, recipe: MixedRecipe) -> bool:
    """Whether the process need not run, because its result exists."""
    if prediction.target is None:
        return prediction.shared == "recipe" and recipe.folder is not None
    if prediction.role is None or request.cache is None:
        return False
    ingredients = Ingredients(checkpoint, request.calibration, recipe.folder)
    return all_cached(request.cache, ingredients, plan, prediction.target, prediction.role)


def _check_space(folder: Path, reused: Iterable[Path], checkpoint: Checkpoint, plan: ExportPlan) -> None:
    """Refuse before work starts if the disk cannot hold the bundle. 4 bytes per parameter and target are an upper bound.

    One more copy is for a converter's temporary files. Several picture sizes exist side by side before they are joined. What
    lies in the folders of `reused`, of a run that is resumed, is there already.
    """
    elements = sum(math.prod(t.shape) for t in checkpoint.tensors.values())
    needed = 4 * elements * (len(plan.targets) + 1 + len(plan.other_sizes) + bool(plan.other_sizes))
    free = shutil.disk_usage(folder).free + sum(p.stat().st_size for root in reused for p in files_under(root))
    if free < needed:
        raise BadInput(
            f"the disk of {folder} has {free / 1e9:.2f} GB free, the bundle may need {needed / 1e9:.2f} GB; "
            "free space or choose another place with --output-dir"
        )
