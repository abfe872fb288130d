"""One component of a plan: from the checkpoint to files that were read back, each conversion in a process of its own."""

from __future__ import annotations

import gc
import shutil
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from snapgen_deploy.checkpoint import CheckpointPlace
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


@dataclass(frozen=True)
class Conversion:
    """What the components of one target share on their way."""

    job: ExportJob
    recipe: MixedRecipe
    target: TargetPlan
    keep: Keep

    @property
    def ingredients(self) -> Ingredients:
        """What decides the components' files besides the plan."""
        return Ingredients(self.job.checkpoint, self.job.request.calibration, self.recipe.folder)


@dataclass(frozen=True)
class ComponentTask:
    """A component that is to be converted at one picture size, for a process of its own."""

    checkpoint: CheckpointPlace
    plan: ExportPlan
    target: TargetPlan
    role: Role
    directory: Path  # where its files go
    drawn: Path  # folder of the calibration pictures, where the target's quantiser looks at such
    threads: int
    calibration: Calibration | None = None
    recipe: Path | None = None  # folder of the recipe of mixed precision


def convert_component(work: Conversion, role: Role) -> Exported:
    """One component, from the cache or an interrupted run where it is there; several picture sizes are joined."""
    job, key, apart = work.job, work.target.key, work.job.stage.root / SIZES_FOLDER
    if not job.plan.other_sizes or not components_of(job.checkpoint.config)[role].sized:
        if not is_arranged(work.target):
            return _convert_one(work, job.plan, role, job.stage.root)
        return _once_more(_convert_one(work, job.plan, role, apart), apart, job.stage.root)
    parts = {size: _convert_one(work, job.plan.at(size), role, apart / size, size) for size in job.plan.sizes}
    with job.progress(f"{key}: joining the sizes of the {title_of(role)}"):
        done, peak = run_in_child(f"{key} {role} sizes", join_sizes, key, parts, folder_of(job.stage.root, key))
    if not job.stage.keep:
        shutil.rmtree(apart)
    return replace(done, peak_bytes=max(peak, done.peak_bytes))


def _once_more(part: Exported, root: Path, to: Path) -> Exported:
    """The component with its files below `to`, too: a layout moves those, and `--resume` finds its own below `root`."""
    places = {file: to / file.relative_to(root) for file in part.artifact.files}
    for file, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        if file.suffix == part.artifact.path.suffix:  # the layout may write into it, such as the new name of the weights
            shutil.copyfile(file, place)
        else:
            place.hardlink_to(file)
    return replace(part, artifact=replace(part.artifact, path=places[part.artifact.path], files=tuple(places.values())))


def _convert_one(work: Conversion, plan: ExportPlan, role: Role, root: Path, size: str = "") -> Exported:
    """A component at one picture size in one child process; an interrupted run's and a cached one are taken as they are.

    `plan` is that of the one size, `size` its name where there are several; the files go below `root`.
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
    with job.progress(f"{target.key}: exporting the {name}{size and f', {size}'}"):
        start = time.monotonic()
        exported, peak = run_in_child(f"{target.key} {role}", export_in_child, task)
    keep.check_unchanged()
    exported = replace(exported, peak_bytes=max(peak, drawing), seconds=round(time.monotonic() - start, 1))
    write_record(root, exported, recipe)  # for `--resume`, should this run be killed
    if keep.cache is not None:
        aside = keep.cache.prepare(directory, exported)
        if aside is not None:
            keep.prepared[key] = aside
    return exported


def export_in_child(task: ComponentTask) -> Exported:
    """In a child process: load, slice, rewrite, export, and read the file back."""
    import torch

    return_freed_memory()
    torch.set_num_threads(task.threads)
    target_plan, role = task.target, task.role
    target, variant = target_of(target_plan.key)
    gc.freeze()  # what imports left stays anyway: converters collect garbage often, and would look at all of it each time
    checkpoint = task.checkpoint.open()
    mixed = task.recipe if target_plan.precision == "mixed" else None
    recipe = load_recipe(mixed) if mixed is not None else None
    must_pack = components_of(checkpoint.config)[role].must_pack
    component = replace(build_component(checkpoint, task.plan, target_plan, role, recipe), expendable=True)
    if task.calibration is not None and is_calibrated(target_plan):
        inputs = partial(task.calibration.inputs, checkpoint, task.drawn, role)
        component = replace(component, calibration=inputs)
    del checkpoint  # one in PyTorch's format is mapped as long as it lives, and what was read of it counts as resident
    task.directory.mkdir(parents=True, exist_ok=True)
    options = {name: value for name, value in target_plan.options if name != "folders"}  # the layout comes afterwards
    artifact = target.export(component, variant, target_plan.precision, task.directory, options)
    description = target.describe(artifact.path)
    if must_pack and PRECISIONS[target_plan.precision].weight_bytes < 2 and not any(map(packed, description.weights.values())):
        raise RuntimeError(
            f"{target_plan.key} {role}: {target_plan.precision} was asked for, and the file holds no such weight"
        )
    return Exported(artifact, description, target.versions(), 0)


def all_cached(cache: ExportCache, ingredients: Ingredients, plan: ExportPlan, target: TargetPlan, role: Role) -> bool:
    """Whether nothing of a component is left to convert, at any picture size that it depends on."""
    sized = components_of(ingredients.checkpoint.config)[role].sized
    plans = [plan.at(size) for size in (plan.sizes if sized else plan.sizes[:1])]
    return all(cache.has(ingredients.key(one, target_at(one, target.key), role)) for one in plans)
