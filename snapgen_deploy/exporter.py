"""The main job: checkpoint and plan in, verified bundle out. Each stage runs in its own process and is named as it runs."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from snapgen_deploy import __version__
from snapgen_deploy.bundle import Bundle, Staging, already_there, open_bundle, staging, write_manifest
from snapgen_deploy.bundle_sizes import preview_name, vectors_name
from snapgen_deploy.cache import ExportCache, export_key, stamps
from snapgen_deploy.calibration import Calibration, is_calibrated
from snapgen_deploy.checkpoint import Checkpoint, open_checkpoint, validate
from snapgen_deploy.child import run_in_child
from snapgen_deploy.components import build_component, roles_of
from snapgen_deploy.device_profiles import PRECISIONS
from snapgen_deploy.elastic import load_student
from snapgen_deploy.errors import BadInput, GateFailed
from snapgen_deploy.export.base import Role, packed
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.export_memory import predict, refuse_what_does_not_fit
from snapgen_deploy.fewer_bits import CALIBRATION, calibration_key, draw_beforehand, judge
from snapgen_deploy.fidelity import Fidelity
from snapgen_deploy.gates import Checked, Gate, check_sizes, failed
from snapgen_deploy.host_memory import available_bytes, hand_back_what_is_freed
from snapgen_deploy.join import PARTS, join_sizes, relocated, whole
from snapgen_deploy.manifest import build_manifest
from snapgen_deploy.manifest_sizes import Macs, add_sizes
from snapgen_deploy.plan import ExportPlan, TargetPlan, target_at
from snapgen_deploy.preview import write_preview
from snapgen_deploy.progress import Counting, Progress, silent
from snapgen_deploy.quantise.recipe import load_recipe
from snapgen_deploy.quantise.report import add_to_manifest, copy_into
from snapgen_deploy.quantise.stage import recipe_room, run_stage
from snapgen_deploy.reference import ReferenceVectors, make_vectors, schedule_of, with_tuned
from snapgen_deploy.resume import Exported, forget, read_record, write_record
from snapgen_deploy.run_record import write_run_record


@dataclass(frozen=True)
class Result:
    """What an export wrote."""

    bundle: Bundle
    gates: tuple[Gate, ...]
    peak_bytes: int  # of the largest process
    run: Mapping[str, Any]  # where components came from and what each stage took, as in the bundle's export_run.json


@dataclass(frozen=True)
class Request:
    """Where to read from and to write to."""

    checkpoint: Path | None
    key_map: Path | None
    output_dir: Path
    prompts: tuple[str, ...]
    threads: int
    overwrite: bool = False
    resume: bool = False
    cache: ExportCache | None = None
    seeds: tuple[int, ...] | None = None  # of the prompts; 0, 1, ... where None
    calibration: Calibration | None = None  # needed where a precision of the plan is calibrated
    fidelity: Fidelity | None = None
    executor: str = "here"  # where mixed precision measures layers
    recipe: Path | None = None  # of mixed precision, once it is made
    # For the manifest; whoever counts and estimates hands them in (`latency.foretell.Foretold`).
    macs: Mapping[str, Mapping[Role, int]] = field(default_factory=dict)
    estimates: tuple[Mapping[str, Any], ...] = ()
    macs_of_sizes: Mapping[str, Macs] = field(default_factory=dict)  # by picture size, where the plan has several


def bundle_name(config_name: str, plan: ExportPlan) -> str:
    """Directory name of a bundle."""
    return f"{config_name}-{plan.device}"


def run_export(request: Request, plan: ExportPlan, progress: Progress, counting: Counting = silent) -> Result:
    """Export, run what was saved, hold it against the reference, and publish the bundle only if every gate held."""
    checkpoint = open_checkpoint(request.checkpoint, request.key_map)
    final = request.output_dir / bundle_name(checkpoint.config.name, plan)
    if final.exists() and not request.overwrite:
        raise already_there(final)
    _check_memory(request, checkpoint, plan)
    before = stamps(checkpoint.files)
    with progress("checking the checkpoint"):
        validate(checkpoint)
    key = _plan_key(checkpoint, plan, calibration_key(request, plan))
    with (
        staging(final, key, overwrite=request.overwrite, resume=request.resume) as stage,
        tempfile.TemporaryDirectory(prefix=f".{final.name}.scratch-", dir=final.parent) as scratch,
        ExitStack() as room,
    ):
        _check_space(stage.root, checkpoint, plan)
        request, quantising = _with_recipe(request, plan, stage.root.parent, room, counting)
        with progress(f"drawing {len(request.prompts) + len(plan.other_sizes)} reference pictures"):
            vectors, drawing = run_in_child("reference", _reference, request, plan)
        draw_beforehand(request, plan, Path(scratch), progress)
        exported: dict[str, dict[Role, Exported]] = {}
        checks: dict[str, dict[str, Checked]] = {}  # by target and picture size
        checking: dict[str, int] = {}
        fidelity: dict[str, dict[str, Any]] = {}
        for target in plan.targets:
            with _kept(request.cache, checkpoint, before) as keep:
                parts = {}
                for role in roles_of(checkpoint.config):
                    how = _export_sizes if plan.other_sizes and role != "text_encoder" else _export_one
                    parts[role] = how(request, checkpoint, plan, target, role, stage, progress, keep, Path(scratch))
                exported[target.key] = parts = _arrange(parts, plan, target, checkpoint, stage)
                artifacts = {s: {role: part.at(s).artifact for role, part in parts.items()} for s in plan.sizes}
                arguments = (
                    target.key,
                    target.precision,
                    target.limits,
                    artifacts,
                    checkpoint.config,
                    schedule_of(checkpoint.config),
                    vectors,
                )
                with progress(f"{target.key}: running what was saved"):
                    check, used = run_in_child(f"{target.key} check", check_sizes, *arguments, request.threads)
                if request.fidelity is not None and request.fidelity.judges(target):
                    first = plan.sizes[0]
                    work = (request, request.fidelity, checkpoint, target, artifacts[first], Path(scratch), progress)
                    more, fidelity[target.key] = judge(*work)
                    check[first] = replace(check[first], gates=(*check[first].gates, *more))
                checks[target.key], checking[target.key] = check, used
                keep.sound = not failed([g for one in check.values() for g in one.gates])
        gates = [g for check in checks.values() for one in check.values() for g in one.gates]
        bad = failed(gates)
        if bad:
            lines = "; ".join(
                f"{g.target} {g.where} {g.name} = {g.value:.3g}, limit {g.limit:g} {g.detail}".strip() for g in bad
            )
            raise GateFailed(f"{len(bad)} of {len(gates)} gates failed, no bundle was written: {lines}")
        with progress("writing the bundle"):
            _write_common(stage.root, checkpoint, vectors, checks, request.recipe)
            described = {k: {r: (whole(p), p.description) for r, p in parts.items()} for k, parts in exported.items()}
            versions = {k: _versions(parts) for k, parts in exported.items()}
            foretold = (request.macs, request.estimates)
            default = vectors[plan.sizes[0]]
            manifest = build_manifest(stage.root, checkpoint, plan, default, described, versions, gates, *foretold, fidelity)
            if plan.other_sizes:
                add_sizes(manifest, stage.root, checkpoint.config, plan, exported, vectors, request.macs_of_sizes)
            if request.recipe is not None:
                students = {key: parts["student"].artifact for key, parts in exported.items()}
                add_to_manifest(manifest, plan, students, request.recipe)
            write_manifest(stage.root, manifest)
            run = write_run_record(stage.root, drawing, exported, checking)
            stage.publish(request.overwrite)
    peak = max(drawing, quantising, run["export_peak_bytes"], *checking.values())
    return Result(open_bundle(final), tuple(gates), peak, run)


def _with_recipe(request: Request, plan: ExportPlan, beside: Path, room: ExitStack, counting: Counting) -> tuple[Request, int]:
    """The request with the recipe of mixed precision, made now or before, and the peak of its process."""
    if plan.mixed is None:
        return request, 0
    limit = request.cache.limit if request.cache is not None else None
    root = room.enter_context(recipe_room(limit, beside))
    stated = (request.checkpoint, request.key_map, plan, request.executor, request.threads)
    recipe, peak = run_stage(*stated, root, counting, limit)
    return replace(request, recipe=recipe), peak


@dataclass
class _Keep:
    """The cache entries of one target: what was prepared, and what was taken."""

    cache: ExportCache | None
    prepared: dict[str, Path] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    sound: bool | None = None  # whether the gates held; None until they ran


@contextmanager
def _kept(cache: ExportCache | None, checkpoint: Checkpoint, before: list[tuple[int, int, int]]) -> Iterator[_Keep]:
    """Stores a target's fresh components once its gates held; drops the entries that it took when they did not."""
    keep = _Keep(cache)
    try:
        yield keep
        if stamps(checkpoint.files) != before:
            raise BadInput(f"checkpoint {checkpoint.path} was changed while it was exported; export again")
        if cache is not None and keep.sound:
            for key in list(keep.prepared):
                cache.commit(key, keep.prepared.pop(key))
        elif cache is not None:
            for key in keep.taken:
                cache.discard(key)
    finally:
        for aside in keep.prepared.values():
            shutil.rmtree(aside, ignore_errors=True)


def _versions(parts: Mapping[Role, Exported]) -> dict[str, str]:
    return {name: version for part in parts.values() for name, version in part.versions.items()}


def _plan_key(checkpoint: Checkpoint, plan: ExportPlan, calibration: str) -> str:
    """Content key of an export: the same key means the same bytes."""
    text = json.dumps([__version__, checkpoint.sha256(), asdict(plan), calibration], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_memory(request: Request, checkpoint: Checkpoint, plan: ExportPlan) -> None:
    """Refuse before work starts when this computer cannot hold the largest process that is still to run."""
    wanted, available = predict(checkpoint.config, plan), available_bytes()
    if available is not None and any(p.bytes > available for p in wanted):
        wanted = tuple(
            p for p in wanted if not (p.target and p.role and _all_cached(request, checkpoint, plan, p.target, p.role))
        )
    refuse_what_does_not_fit(wanted, available)


def _all_cached(request: Request, checkpoint: Checkpoint, plan: ExportPlan, target: TargetPlan, role: Role) -> bool:
    """Whether nothing of a component is left to convert, at any picture size that it depends on."""
    sizes = plan.sizes[:1] if role == "text_encoder" else plan.sizes
    return request.cache is not None and all(
        request.cache.has(_cache_key(request, checkpoint, plan.at(s), target_at(plan.at(s), target.key), role)) for s in sizes
    )


def _cache_key(request: Request, checkpoint: Checkpoint, plan: ExportPlan, target: TargetPlan, role: Role) -> str:
    """What the cache knows a component by; what a calibrated quantiser looked at is part of it."""
    calibration = request.calibration.sha256() if request.calibration is not None and is_calibrated(target) else ""
    return export_key(checkpoint, plan, target, role, calibration)


def _check_space(root: Path, checkpoint: Checkpoint, plan: ExportPlan) -> None:
    """Refuse before work starts when the disk cannot hold the bundle: 4 bytes a parameter and target is an upper bound.

    Several picture sizes lie there one by one before they are joined.
    """
    elements = sum(math.prod(t.shape) for t in checkpoint.tensors.values())
    needed = 4 * elements * (len(plan.targets) + len(plan.other_sizes) + bool(plan.other_sizes))
    free = shutil.disk_usage(root).free
    if free < needed:
        raise BadInput(
            f"the disk of {root.parent} has {free / 1e9:.2f} GB free, the bundle may need {needed / 1e9:.2f} GB; "
            "free space or choose another place with --output-dir"
        )


def _reference(request: Request, plan: ExportPlan) -> dict[str, ReferenceVectors]:
    """In a child process: the test vectors by picture size; every prompt at the default size, the first one at the others."""
    import torch

    torch.set_num_threads(request.threads)
    checkpoint = open_checkpoint(request.checkpoint, request.key_map)
    count = [len(request.prompts), *(1 for _ in plan.other_sizes)]
    seeds = request.seeds or tuple(range(len(request.prompts)))
    found = {
        size: make_vectors(checkpoint, plan.at(size), request.prompts[:n], seeds[:n])
        for size, n in zip(plan.sizes, count, strict=True)
    }
    recipe = load_recipe(request.recipe) if request.recipe is not None else None
    if recipe is None:
        return found
    tuned, schedule = recipe.apply(load_student(checkpoint, plan.width)), schedule_of(checkpoint.config)
    return {size: with_tuned(vectors, tuned, schedule) for size, vectors in found.items()}


def _export_one(
    request: Request,
    checkpoint: Checkpoint,
    plan: ExportPlan,
    target: TargetPlan,
    role: Role,
    stage: Staging,
    progress: Progress,
    keep: _Keep,
    scratch: Path,
    part_of: str = "",
) -> Exported:
    """One component in one child process; an interrupted run's finished component and a cached one are taken as they are.

    `part_of`: the plan is one picture size of several, to be joined: its files lie in a folder of their own.
    """
    root = stage.root / PARTS / part_of if part_of else stage.root
    directory = root / target.key.replace(":", "-")
    done = read_record(root, target.key, role)
    if done is not None:
        return done
    key = _cache_key(request, checkpoint, plan, target, role) if keep.cache is not None else ""
    if keep.cache is not None and keep.cache.has(key):
        with progress(f"{target.key}: taking the {role.replace('_', ' ')} from the cache"):
            done = keep.cache.take(key, target.key, role, directory)
        if done is not None:
            keep.taken.append(key)
            return done
    with progress(f"{target.key}: exporting the {role.replace('_', ' ')}{part_of and f', {part_of}'}"):
        start = time.monotonic()
        work = (request, plan, target, role, directory, scratch)
        exported, peak = run_in_child(f"{target.key} {role}", export_in_child, *work)
    exported = replace(exported, peak_bytes=peak, seconds=round(time.monotonic() - start, 1))
    if stage.keep:
        write_record(root, exported)
    if keep.cache is not None:
        aside = keep.cache.prepare(directory, exported)
        if aside is not None:
            keep.prepared[key] = aside
    return exported


def _export_sizes(
    request: Request,
    checkpoint: Checkpoint,
    plan: ExportPlan,
    target: TargetPlan,
    role: Role,
    stage: Staging,
    progress: Progress,
    keep: _Keep,
    scratch: Path,
) -> Exported:
    """One component at every size of the plan, each in a process of its own, then their files joined in another."""
    parts: dict[str, Exported] = {}
    for size in plan.sizes:
        one = plan.at(size)
        parts[size] = _export_one(
            request, checkpoint, one, target_at(one, target.key), role, stage, progress, keep, scratch, part_of=size
        )
    directory = stage.root / target.key.replace(":", "-")
    with progress(f"{target.key}: joining the sizes of the {role.replace('_', ' ')}"):
        done, peak = run_in_child(f"{target.key} {role} sizes", join_sizes, target.key, parts, directory)
    if not stage.keep:
        shutil.rmtree(stage.root / PARTS)
    return replace(done, peak_bytes=max(peak, done.peak_bytes))


def export_in_child(
    request: Request, plan: ExportPlan, target_plan: TargetPlan, role: Role, directory: Path, scratch: Path
) -> Exported:
    """In a child process: load, slice, rewrite, export, and read the file back."""
    import torch

    hand_back_what_is_freed()
    torch.set_num_threads(request.threads)
    target, variant = target_of(target_plan.key)
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


def _arrange(
    parts: dict[Role, Exported], plan: ExportPlan, target: TargetPlan, checkpoint: Checkpoint, stage: Staging
) -> dict[Role, Exported]:
    """The folder layout that the profile asks for; only `diffusers` differs from one flat folder a target."""
    if dict(target.options).get("folders") != "diffusers":
        return parts
    from snapgen_deploy.export.optimum_layout import arrange, renamed

    root = stage.root / target.key.replace(":", "-")
    artifacts = {role: whole(part) for role, part in parts.items()}
    moved = arrange(root, artifacts, checkpoint.config, checkpoint.tokenizer, width=plan.width)
    return {role: relocated(part, moved[role], renamed) for role, part in parts.items()}


def _write_common(
    root: Path,
    checkpoint: Checkpoint,
    vectors: Mapping[str, ReferenceVectors],
    checks: Mapping[str, Mapping[str, Checked]],
    recipe: Path | None,
) -> None:
    """What all targets share: tokenizer, the recipe of mixed precision, for every picture size test vectors and preview."""
    from safetensors.numpy import save_file

    from snapgen_deploy.pipeline import to_bytes

    forget(root)
    shutil.rmtree(root / PARTS, ignore_errors=True)  # there where an interrupted run may be taken up again
    if recipe is not None:
        copy_into(root, recipe)
    if checkpoint.tokenizer:
        (root / "tokenizer.json").write_text(checkpoint.tokenizer, encoding="utf-8")
    for number, (size, of) in enumerate(vectors.items()):
        other = size if number else None
        # one metadata key only: the library writes several in an order that changes from run to run
        save_file(of.arrays, root / vectors_name(other), {"prompts": json.dumps(of.prompts)})
        if "picture" in of.arrays:
            columns = {"reference": [to_bytes(p[None]) for p in of.arrays["picture"]]}
            columns |= {key: list(check[size].pictures) for key, check in checks.items() if check[size].pictures}
            write_preview(root / preview_name(other), of.prompts, columns)
