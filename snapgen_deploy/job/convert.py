"""One component of a plan: from the checkpoint to files that were read back, each conversion in a process of its own."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from snapgen_deploy.checkpoint import Checkpoint, open_checkpoint
from snapgen_deploy.checkpoint.unchanged import refuse_changed
from snapgen_deploy.device_profiles import PRECISIONS
from snapgen_deploy.export.base import Role, packed
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.job.cache import ExportCache, export_key
from snapgen_deploy.job.calibration import is_calibrated
from snapgen_deploy.job.components import build_component
from snapgen_deploy.job.drawn import CALIBRATION, draw_calibration
from snapgen_deploy.job.records import Exported, read_record, write_record
from snapgen_deploy.job.request import Request
from snapgen_deploy.job.sizes import PARTS, join_sizes
from snapgen_deploy.job.staging import Staging
from snapgen_deploy.plan.plan import ExportPlan, TargetPlan, target_at
from snapgen_deploy.quantise.recipe import RECIPE, load_recipe
from snapgen_deploy.system.child import run_in_child
from snapgen_deploy.system.files import sha256_of
from snapgen_deploy.system.host_memory import hand_back_what_is_freed
from snapgen_deploy.system.progress import Progress


@dataclass
class Keep:
    """The cache entries of one target: what was prepared, and what was taken, of a checkpoint as it was `before`."""

    cache: ExportCache | None
    checkpoint: Checkpoint
    before: list[tuple[int, int, int]]
    prepared: dict[str, Path] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    sound: bool | None = None  # whether the gates held; None until they ran

    def check_unchanged(self) -> None:
        """BadInput where the checkpoint is another since: what was made of it must not be kept under the old one's key."""
        refuse_changed(self.checkpoint, self.before)


@contextmanager
def kept(cache: ExportCache | None, checkpoint: Checkpoint, before: list[tuple[int, int, int]]) -> Iterator[Keep]:
    """Stores a target's fresh components once its gates held; drops the entries that it took when they did not."""
    keep = Keep(cache, checkpoint, before)
    try:
        yield keep
        keep.check_unchanged()
        if cache is not None and keep.sound:
            for key in list(keep.prepared):
                cache.commit(key, keep.prepared.pop(key))
        elif cache is not None:
            for key in keep.taken:
                cache.discard(key)
    finally:
        for aside in keep.prepared.values():
            shutil.rmtree(aside, ignore_errors=True)


@dataclass(frozen=True)
class Conversion:
    """What the components of one target share on their way."""

    request: Request
    checkpoint: Checkpoint
    plan: ExportPlan
    target: TargetPlan
    stage: Staging
    keep: Keep
    progress: Progress


def convert(work: Conversion, role: Role) -> Exported:
    """One component, from the cache or an interrupted run where it is there; several picture sizes are joined."""
    key, apart = work.target.key, work.stage.root / PARTS
    if not work.plan.other_sizes or role == "text_encoder":
        if not is_arranged(work.target):
            return _convert_one(work, work.plan, role, work.stage.root)
        return _once_more(_convert_one(work, work.plan, role, apart), apart, work.stage.root)
    parts = {size: _convert_one(work, work.plan.at(size), role, apart / size, size) for size in work.plan.sizes}
    with work.progress(f"{key}: joining the sizes of the {role.replace('_', ' ')}"):
        done, peak = run_in_child(f"{key} {role} sizes", join_sizes, key, parts, folder_of(work.stage.root, key))
    if not work.stage.keep:
        shutil.rmtree(apart)
    return replace(done, peak_bytes=max(peak, done.peak_bytes))


def is_arranged(target: TargetPlan) -> bool:
    """Whether the target's files are moved into the folders of a layout when all are there."""
    return dict(target.options).get("folders") == "diffusers"


def _once_more(part: Exported, root: Path, to: Path) -> Exported:
    """The component with its files below `to`, too: a layout moves those, and `--resume` finds its own below `root`."""
    places = {file: to / file.relative_to(root) for file in part.artifact.files}
    for file, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        if file.suffix == ".onnx":  # the layout writes the new name of the weights into it
            shutil.copyfile(file, place)
        else:
            place.hardlink_to(file)
    return replace(part, artifact=replace(part.artifact, path=places[part.artifact.path], files=tuple(places.values())))


def folder_of(root: Path, key: str) -> Path:
    """Where a target's files lie in a bundle."""
    return root / key.replace(":", "-")


def _convert_one(work: Conversion, plan: ExportPlan, role: Role, root: Path, size: str = "") -> Exported:
    """A component at one picture size in one child process; an interrupted run's and a cached one are taken as they are.

    `plan` is that of the one size, `size` its name where there are several; the files go below `root`.
    """
    target, keep, name = target_at(plan, work.target.key), work.keep, role.replace("_", " ")
    directory = folder_of(root, target.key)
    recipe = recipe_sha256(work.request, target, role)
    done = read_record(root, target.key, role, recipe)
    if done is not None:
        return done
    key = cache_key(work.request, work.checkpoint, plan, target, role) if keep.cache is not None else ""
    if keep.cache is not None and keep.cache.has(key):
        with work.progress(f"{target.key}: taking the {name} from the cache"):
            done = keep.cache.take(key, target.key, role, directory)
        if done is not None:
            keep.taken.append(key)
            return done
    drawing = draw_calibration(work.request, plan, target, work.stage.scratch, work.progress)
    with work.progress(f"{target.key}: exporting the {name}{size and f', {size}'}"):
        start = time.monotonic()
        arguments = (work.request, plan, target, role, directory, work.stage.scratch)
        exported, peak = run_in_child(f"{target.key} {role}", export_in_child, *arguments)
    keep.check_unchanged()
    exported = replace(exported, peak_bytes=max(peak, drawing), seconds=round(time.monotonic() - start, 1))
    write_record(root, exported, recipe)  # for `--resume`, should this run be killed
    if keep.cache is not None:
        aside = keep.cache.prepare(directory, exported)
        if aside is not None:
            keep.prepared[key] = aside
    return exported


def export_in_child(
    request: Request, plan: ExportPlan, target_plan: TargetPlan, role: Role, directory: Path, scratch: Path
) -> Exported:
    """In a child process: load, slice, rewrite, export, and read the file back."""
    import torch

    hand_back_what_is_freed()
    torch.set_num_threads(request.threads)
    target, variant = target_of(target_plan.key)
    gc.freeze()  # what imports left stays anyway: converters collect garbage often, and would look at all of it each time
    checkpoint = open_checkpoint(request.checkpoint, request.key_map)
    mixed = request.recipe if target_plan.precision == "mixed" else None
    recipe = load_recipe(mixed) if mixed is not None else None
    component = replace(build_component(checkpoint, plan, target_plan, role, recipe), expendable=True)
    if request.calibration is not None and is_calibrated(target_plan):
        inputs = partial(request.calibration.inputs, checkpoint, scratch / CALIBRATION, role)
        component = replace(component, calibration=inputs)
    del checkpoint  # one in PyTorch's format is mapped as long as it lives, and what was read of it counts as resident
    directory.mkdir(parents=True, exist_ok=True)
    options = {name: value for name, value in target_plan.options if name != "folders"}  # the layout comes afterwards
    artifact = target.export(component, variant, target_plan.precision, directory, options)
    description = target.describe(artifact.path)
    if (
        role == "student"
        and PRECISIONS[target_plan.precision].weight_bytes < 2
        and not any(map(packed, description.weights.values()))
    ):
        raise RuntimeError(
            f"{target_plan.key} {role}: {target_plan.precision} was asked for, and the file holds no such weight"
        )
    return Exported(artifact, description, target.versions(), 0)


def all_cached(request: Request, checkpoint: Checkpoint, plan: ExportPlan, target: TargetPlan, role: Role) -> bool:
    """Whether nothing of a component is left to convert, at any picture size that it depends on."""
    sizes = plan.sizes[:1] if role == "text_encoder" else plan.sizes
    return request.cache is not None and all(
        request.cache.has(cache_key(request, checkpoint, plan.at(s), target_at(plan.at(s), target.key), role)) for s in sizes
    )


def cache_key(request: Request, checkpoint: Checkpoint, plan: ExportPlan, target: TargetPlan, role: Role) -> str:
    """What the cache knows a component by; what a calibrated quantiser looked at, and the recipe, are part of it."""
    calibration = request.calibration.sha256() if request.calibration is not None and is_calibrated(target) else ""
    return export_key(checkpoint, plan, target, role, calibration + recipe_sha256(request, target, role))


def recipe_sha256(request: Request, target: TargetPlan, role: Role) -> str:
    """Hash of the recipe of mixed precision that a component is made by; nothing for other components, or before it is made.

    Its settings would not do: a recipe that is made again with another number of threads differs in the last bits.
    """
    if request.recipe is None or role != "student" or target.precision != "mixed":
        return ""
    return sha256_of(request.recipe / RECIPE)
