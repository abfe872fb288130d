"""Converts one component of a plan: from the checkpoint to files that are read back, each conversion in its own process."""

from __future__ import annotations

import gc
import re
import shutil
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from snapgen_deploy.checkpoint import CheckpointPlace
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Role, packed
from snapgen_deploy.export.precisions import PRECISIONS
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.families.names import title_of
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.job.cache import ExportCache
from snapgen_deploy.job.calibration import Calibration, is_calibrated
from snapgen_deploy.job.components import build_component
from snapgen_deploy.job.drawn import CALIBRATION_FOLDER, draw_calibration
from snapgen_deploy.job.ingredients import Ingredients
from snapgen_deploy.job.keep import Keep
from snapgen_deploy.job.layout import folder_of, is_arranged
from snapgen_deploy.job.records import Exported, read_record, write_record
from snapgen_deploy.job.sizes import SIZES_FOLDER, join_sizes
from snapgen_deploy.job.state import ExportJob, MixedRecipe
from snapgen_deploy.plan.plan import ExportPlan, TargetPlan, target_at
from snapgen_deploy.quantise.recipe import load_recipe
from snapgen_deploy.system.child import run_in_child
from snapgen_deploy.system.host_memory import return_freed_memory
from snapgen_deploy.system.quiet import reason_of

_OPERATOR = re.compile(r"\baten(?:\.|::)\w+|(?<=fx node )\w+|(?<=function for op ')\w+")  # as PyTorch and coremltools name it


@dataclass(frozen=True)
class Conversion:
    """What the conversions of one target's components share."""

    job: ExportJob
    recipe: MixedRecipe
    target: TargetPlan
    keep: Keep

    @property
    def ingredients(self) -> Ingredients:
        """What decides the components' files, besides the plan."""
        return Ingredients(self.job.checkpoint, self.job.request.calibration, self.recipe.folder)


@dataclass(frozen=True)
class ComponentTask:
    """One component to convert at one picture size, for a process of its own."""

    checkpoint: CheckpointPlace
    plan: ExportPlan
    target: TargetPlan
    role: Role
    directory: Path  # where its files go
    drawn: Path  # folder of the calibration pictures, if the target's quantiser needs them
    threads: int
    calibration: Calibration | None = None
    recipe: Path | None = None  # folder of the recipe of mixed precision


def convert_component(work: Conversion, role: Role) -> Exported:
    """Convert one component, or take it from the cache or an interrupted run. Several picture sizes are joined."""
    job, key, apart = work.job, work.target.key, work.job.stage.root / SIZES_FOLDER
    if not job.plan.other_sizes or not components_of(job.checkpoint.config)[role].sized:
        if not is_arranged(work.target):
            return _convert_one(work, job.plan, role, job.stage.root)
        return _copied(_convert_one(work, job.plan, role, apart), apart, job.stage.root)
    parts = {size: _convert_one(work, job.plan.at(size), role, apart / size, size) for size in job.plan.sizes}
    with job.working(f"{key}: joining the sizes of the {title_of(role)}", key, role):
        done, peak = run_in_child(f"{key} {role} sizes", join_sizes, key, parts, folder_of(job.stage.root, key))
    if not job.stage.keep:
        shutil.rmtree(apart)
    return replace(done, peak_bytes=max(peak, done.peak_bytes))


def _copied(part: Exported, root: Path, to: Path) -> Exported:
    """A second copy of the component's files in `to`: a layout moves that one, and `--resume` finds the first in `root`."""
    places = {file: to / file.relative_to(root) for file in part.artifact.files}
    for file, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        if file.suffix == part.artifact.path.suffix:  # the layout may change this file, for example the name of the weights
            shutil.copyfile(file, place)
        else:
            place.hardlink_to(file)
    return replace(part, artifact=replace(part.artifact, path=places[part.artifact.path], files=tuple(places.values())))


def _convert_one(work: Conversion, plan: ExportPlan, role: Role, root: Path, size: str = "") -> Exported:
    """Convert a component at one picture size, in one child process, unless an interrupted run or the cache has it.

    `plan` is the plan of this size. `size` is its name if there are several. The files go to a folder in `root`.
    """
    job, target, keep, name = work.job, target_at(plan, work.target.key), work.keep, title_of(role)
    directory = folder_of(root, target.key)
    recipe = work.ingredients.recipe_sha256(target, role)
    done = read_record(root, target.key, role, recipe)
    if done is not None:
        return done
    key = work.ingredients.key(plan, target, role) if keep.cache is not None else ""
    if keep.cache is not None and keep.cache.has(key):
        with job.progress(f"{target.key}: taking the {name} from the cache"):
            done = keep.cache.take(key, target.key, role, directory)
        if done is not None:
            keep.taken.append(key)
            return done
    drawing = draw_calibration(job, plan, target)
    task = ComponentTask(
        checkpoint=job.request.checkpoint,
        plan=plan,
        target=target,
        role=role,
        directory=directory,
        drawn=job.stage.scratch / CALIBRATION_FOLDER,
        threads=job.request.threads,
        calibration=job.request.calibration,
        recipe=work.recipe.folder,
    )
    with job.working(f"{target.key}: exporting the {name}{size and f', {size}'}", target.key, role):
        start = time.monotonic()
        exported, peak = run_in_child(f"{target.key} {role}", export_in_child, task)
    keep.check_unchanged()
    exported = replace(exported, peak_bytes=max(peak, drawing), seconds=round(time.monotonic() - start, 1))
    write_record(root, exported, recipe)  # for `--resume`, in case this run is killed
    if keep.cache is not None:
        aside = keep.cache.prepare(directory, exported)
        if aside is not None:
            keep.prepared[key] = aside
    return exported


def export_in_child(task: ComponentTask) -> Exported:
    """Load, slice, rewrite and export a component, then read the file back. Runs in a child process.

    Raises:
        BadInput: if a user's own network does not convert; the message names the operator.
        RuntimeError: if a low precision was asked for and the file holds no such weight.
    """
    import torch

    return_freed_memory()
    torch.set_num_threads(task.threads)
    target_plan, role = task.target, task.role
    target, variant = target_of(target_plan.key)
    gc.freeze()  # objects made by imports stay anyway; converters collect garbage often and would scan all of them each time
    checkpoint = task.checkpoint.open()
    mixed = task.recipe if target_plan.precision == "mixed" else None
    recipe = load_recipe(mixed) if mixed is not None else None
    spec = components_of(checkpoint.config)[role]
    component = replace(build_component(checkpoint, task.plan, target_plan, role, recipe), expendable=True)
    if task.calibration is not None and is_calibrated(target_plan):
        inputs = partial(task.calibration.inputs, checkpoint, task.drawn, role, task.plan.batch)
        component = replace(component, calibration=inputs)
    del checkpoint  # a file in PyTorch's format stays mapped while open, and pages that were read count as resident memory
    task.directory.mkdir(parents=True, exist_ok=True)
    options = {name: value for name, value in target_plan.options if name != "folders"}  # the layout comes afterwards
    try:
        artifact = target.export(component, variant, target_plan.precision, task.directory, options)
    except RuntimeError as error:
        if not spec.needs_vectors:  # what is known here converts
            raise
        raise BadInput(f"{task.target.key} {role}: {unconverted(error)}") from error
    description = target.describe(artifact.path)
    wanted = spec.must_pack and PRECISIONS[target_plan.precision].weight_bytes < 2
    if wanted and not any(map(packed, description.weights.values())) and not description.skipped:
        raise RuntimeError(
            f"{target_plan.key} {role}: {target_plan.precision} was asked for, and the file holds no such weight"
        )
    return Exported(artifact, description, target.versions(), 0)


def unconverted(error: BaseException) -> str:
    """What of a network did not convert: the operator that a converter's exception names, or one that led to it."""
    found: BaseException | None = error
    while found is not None:
        if named := _OPERATOR.search(str(found)):
            return f"the operator {named[0]} is not converted; the general passes (docs/students.md) have no other form of it"
        found = found.__cause__ or found.__context__
    return f"is not converted ({reason_of(error)})"


def all_cached(cache: ExportCache, ingredients: Ingredients, plan: ExportPlan, target: TargetPlan, role: Role) -> bool:
    """Whether the cache holds a component at every picture size, so that nothing is left to convert."""
    sized = components_of(ingredients.checkpoint.config)[role].sized
    plans = [plan.at(size) for size in (plan.sizes if sized else plan.sizes[:1])]
    return all(cache.has(ingredients.key(one, target_at(one, target.key), role)) for one in plans)
