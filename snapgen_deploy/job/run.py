"""The main job: checkpoint and plan in, verified bundle out. Each stage runs in its own process and is named as it runs."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from snapgen_deploy import __version__
from snapgen_deploy.bundle.preview import write_preview
from snapgen_deploy.bundle.reader import Bundle, bundle_name, open_bundle, write_manifest
from snapgen_deploy.bundle.sizes import preview_name, vectors_name
from snapgen_deploy.check.gates import Checked, Gate, check_sizes, failed
from snapgen_deploy.checkpoint import Checkpoint, open_checkpoint, validate
from snapgen_deploy.checkpoint.networks import load_student
from snapgen_deploy.drawing.ports import roles_of
from snapgen_deploy.drawing.reference import ReferenceVectors, make_vectors, schedule_of, with_tuned
from snapgen_deploy.errors import BadInput, GatesFailed
from snapgen_deploy.export.base import Role
from snapgen_deploy.job.cache import tool_versions
from snapgen_deploy.job.convert import Conversion, all_cached, convert, folder_of, is_arranged, kept
from snapgen_deploy.job.drawn import calibration_key, draw_for_fidelity, judge
from snapgen_deploy.job.manifest import build_manifest
from snapgen_deploy.job.manifest_sizes import add_sizes
from snapgen_deploy.job.memory import Prediction, predict, refuse_what_does_not_fit
from snapgen_deploy.job.records import Exported, forget, sweep
from snapgen_deploy.job.request import Request
from snapgen_deploy.job.run_record import write_run_record
from snapgen_deploy.job.sizes import PARTS, relocated, whole
from snapgen_deploy.job.staging import check_place, staging
from snapgen_deploy.models.tokenizer import WordTokenizer
from snapgen_deploy.plan.plan import ExportPlan
from snapgen_deploy.quantise.recipe import default_root, finished_recipe, load_recipe
from snapgen_deploy.quantise.report import add_to_manifest, copy_into
from snapgen_deploy.quantise.stage import run_stage
from snapgen_deploy.system.child import run_in_child
from snapgen_deploy.system.files import files_under, stamps, temporary_files_in
from snapgen_deploy.system.host_memory import available_bytes
from snapgen_deploy.system.progress import Counting, Done, Progress, silent, untold
from snapgen_deploy.system.source import source_sha256


@dataclass(frozen=True)
class Result:
    """What an export wrote."""

    bundle: Bundle
    gates: tuple[Gate, ...]
    peak_bytes: int  # of the largest process
    run: Mapping[str, Any]  # where components came from and what each stage took, as in the bundle's export_run.json


def run_export(request: Request, plan: ExportPlan, progress: Progress, counting: Counting = silent) -> Result:
    """Export, run what was saved, hold it against the reference, and publish the bundle only if every gate held."""
    checkpoint = open_checkpoint(request.checkpoint, request.key_map)
    final = request.output_dir / bundle_name(checkpoint.config.name, plan.device)
    check_place(final, request.overwrite)
    before = stamps(checkpoint.files)
    _check_memory(request, checkpoint, plan)
    with progress("checking the checkpoint"):
        validate(checkpoint)
    key = _plan_key(checkpoint, plan, calibration_key(request, plan))
    with (
        staging(final, key, overwrite=request.overwrite, resume=request.resume) as stage,
        temporary_files_in(stage.scratch),  # of this process and all that it starts
    ):
        sweep(stage.root)
        _check_space(stage.root, checkpoint, plan)
        request, quantising = _with_recipe(request, checkpoint, plan, stage.scratch, counting)
        with progress(f"drawing {len(request.prompts) + len(plan.other_sizes)} reference pictures") as tell:
            vectors, drawing = run_in_child("reference", _reference, request, plan, tell=tell)
        drawing = max(drawing, draw_for_fidelity(request, plan, stage.scratch, progress))
        held = {}
        for target in plan.targets:
            with kept(request.cache, checkpoint, before) as keep:
                work = Conversion(request, checkpoint, plan, target, stage, keep, progress)
                held[target.key] = _hold(work, vectors)
                keep.sound = not failed(held[target.key].gates)
        gates = [g for one in held.values() for g in one.gates]
        if bad := failed(gates):
            said = f"{len(bad)} of {len(gates)} gates failed, no bundle was written: {'; '.join(map(_said, bad))}"
            raise GatesFailed(said, [g.as_dict() for g in gates])
        with progress("writing the bundle"):
            _write_common(stage.root, checkpoint, vectors, held, request.recipe)
            write_manifest(stage.root, _manifest(stage.root, request, checkpoint, plan, vectors, held))
            exported, checking = {k: one.parts for k, one in held.items()}, {k: one.check_peak for k, one in held.items()}
            run = write_run_record(stage.root, drawing, quantising, exported, checking)
            stage.publish(request.overwrite)
    peak = max(drawing, quantising, run["export_peak_bytes"], *checking.values())
    return Result(open_bundle(final), tuple(gates), peak, run)


@dataclass(frozen=True)
class _Held:
    """One target: its components, what its gates found by picture size, the fidelity gate's record, the check's peak."""

    parts: dict[Role, Exported]
    checks: dict[str, Checked]
    fidelity: dict[str, Any] | None
    check_peak: int  # bytes

    @property
    def gates(self) -> list[Gate]:
        return [g for check in self.checks.values() for g in check.gates]


def _hold(work: Conversion, vectors: Mapping[str, ReferenceVectors]) -> _Held:
    """Convert a target's components, run what was saved, and hold it against the reference."""
    request, plan, target, config = work.request, work.plan, work.target, work.checkpoint.config
    parts = _arrange(work, {role: convert(work, role) for role in roles_of(config)})
    artifacts = {s: {role: part.at(s).artifact for role, part in parts.items()} for s in plan.sizes}
    with work.progress(f"{target.key}: running what was saved") as tell:
        arguments = (target.key, target.precision, target.limits, artifacts, config, schedule_of(config), vectors)
        checks, peak = run_in_child(f"{target.key} check", check_sizes, *arguments, request.threads, tell=tell)
    record = None
    if request.fidelity is not None and request.fidelity.judges(target):
        first = plan.sizes[0]
        judged = (request, request.fidelity, work.checkpoint, target, artifacts[first], work.stage.scratch, work.progress)
        more, record, judging = judge(*judged)
        peak = max(peak, judging)
        checks[first] = replace(checks[first], gates=(*checks[first].gates, *more))
    return _Held(parts, checks, record, peak)


def _said(gate: Gate) -> str:
    return f"{gate.target} {gate.where} {gate.name} = {gate.value:.3g}, limit {gate.limit:g} {gate.detail}".strip()


def _manifest(
    root: Path,
    request: Request,
    checkpoint: Checkpoint,
    plan: ExportPlan,
    vectors: Mapping[str, ReferenceVectors],
    held: Mapping[str, _Held],
) -> dict[str, Any]:
    """What the bundle says of itself; the files lie below `root`."""
    exported = {k: one.parts for k, one in held.items()}
    described = {k: {r: (whole(p), p.description) for r, p in parts.items()} for k, parts in exported.items()}
    versions = {k: {name: v for p in parts.values() for name, v in p.versions.items()} for k, parts in exported.items()}
    gates = [g for one in held.values() for g in one.gates]
    fidelity = {k: one.fidelity for k, one in held.items() if one.fidelity is not None}
    default = vectors[plan.sizes[0]]
    foretold = (request.macs, request.estimates)
    manifest = build_manifest(root, checkpoint, plan, default, described, versions, gates, *foretold, fidelity)
    if plan.other_sizes:
        add_sizes(manifest, root, checkpoint.config, plan, exported, vectors, request.macs_of_sizes)
    if request.recipe is not None:
        add_to_manifest(manifest, plan, {k: parts["student"].artifact for k, parts in exported.items()}, request.recipe)
    return manifest


def _with_recipe(
    request: Request, checkpoint: Checkpoint, plan: ExportPlan, scratch: Path, counting: Counting
) -> tuple[Request, int]:
    """The request with the recipe of mixed precision, made now or before, and the peak of its process (0 where it was there).

    It is copied: another export may make room where recipes are kept. Without a cache nothing is kept.
    """
    if plan.mixed is None:
        return request, 0
    limit, root = (request.cache.limit, default_root()) if request.cache is not None else (None, scratch / "recipes")
    recipe, peak = finished_recipe(checkpoint, plan.width, plan.latent, plan.mixed, root), 0
    if recipe is None:
        stated = (request.checkpoint, request.key_map, plan, request.executor, request.threads)
        recipe, peak = run_stage(*stated, root, counting, limit)
    return replace(request, recipe=shutil.copytree(recipe, scratch / "recipe")), peak


def _plan_key(checkpoint: Checkpoint, plan: ExportPlan, calibration: str) -> str:
    """Content key of an export: the same key means the same bytes. What `--tune` timed decides none."""
    data = asdict(plan) | {"reasons": (), "targets": [asdict(t) | {"form_ms": ()} for t in plan.targets]}
    parts = [__version__, source_sha256(), tool_versions(), checkpoint.sha256(), data, calibration]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_memory(request: Request, checkpoint: Checkpoint, plan: ExportPlan) -> None:
    """Refuse before work starts when this computer cannot hold the largest process that is still to run."""
    wanted, available = predict(checkpoint.config, plan, request.executor), available_bytes()
    if available is not None and any(p.bytes > available for p in wanted):
        if plan.mixed is not None and request.cache is not None:
            request = replace(request, recipe=finished_recipe(checkpoint, plan.width, plan.latent, plan.mixed, default_root()))
        wanted = tuple(p for p in wanted if not _is_done(p, request, checkpoint, plan))
    refuse_what_does_not_fit(wanted, available)


def _is_done(prediction: Prediction, request: Request, checkpoint: Checkpoint, plan: ExportPlan) -> bool:
    """Whether the process will not run, since what it would make is there."""
    if prediction.target is None:
        return prediction.shared == "recipe" and request.recipe is not None
    return prediction.role is not None and all_cached(request, checkpoint, plan, prediction.target, prediction.role)


def _check_space(root: Path, checkpoint: Checkpoint, plan: ExportPlan) -> None:
    """Refuse before work starts when the disk cannot hold the bundle: 4 bytes a parameter and target is an upper bound.

    As much again for what a converter writes on its way; several picture sizes lie there one by one before they are joined.
    """
    elements = sum(math.prod(t.shape) for t in checkpoint.tensors.values())
    needed = 4 * elements * (len(plan.targets) + 1 + len(plan.other_sizes) + bool(plan.other_sizes))
    free = shutil.disk_usage(root).free + sum(p.stat().st_size for p in files_under(root))  # of a run that is taken up again
    if free < needed:
        raise BadInput(
            f"the disk of {root.parent} has {free / 1e9:.2f} GB free, the bundle may need {needed / 1e9:.2f} GB; "
            "free space or choose another place with --output-dir"
        )


def _reference(request: Request, plan: ExportPlan, tell: Done = untold) -> dict[str, ReferenceVectors]:
    """In a child process: the test vectors by picture size; every prompt at the default size, the first one at the others."""
    import torch

    torch.set_num_threads(request.threads)
    checkpoint = open_checkpoint(request.checkpoint, request.key_map)
    count = [len(request.prompts), *(1 for _ in plan.other_sizes)]
    seeds = request.seeds or tuple(range(len(request.prompts)))
    found = {
        size: make_vectors(checkpoint, plan.at(size), request.prompts[:n], seeds[:n], tell)
        for size, n in zip(plan.sizes, count, strict=True)
    }
    if request.recipe is None:
        return found
    recipe = load_recipe(request.recipe)
    if recipe is None:
        raise BadInput(f"the recipe in {request.recipe} was removed or changed while it was used; export again")
    tuned, schedule = recipe.apply(load_student(checkpoint, plan.width)), schedule_of(checkpoint.config)
    return {size: with_tuned(vectors, tuned, schedule) for size, vectors in found.items()}


def _arrange(work: Conversion, parts: dict[Role, Exported]) -> dict[Role, Exported]:
    """The folder layout that the profile asks for; only `diffusers` differs from one flat folder a target."""
    if not is_arranged(work.target):
        return parts
    from snapgen_deploy.export.onnx.optimum_layout import arrange, renamed

    root, checkpoint = folder_of(work.stage.root, work.target.key), work.checkpoint
    artifacts = {role: whole(part) for role, part in parts.items()}
    moved = arrange(root, artifacts, checkpoint.config, _tokenizer_of(checkpoint), width=work.plan.width)
    return {role: relocated(part, moved[role], renamed) for role, part in parts.items()}


def _tokenizer_of(checkpoint: Checkpoint) -> str | None:
    """The tokenizer.json that an app is to use: it pads to the text encoder's length; None where prompts are not read."""
    encoder = checkpoint.config.text_encoder
    if not checkpoint.tokenizer or encoder is None:
        return checkpoint.tokenizer or None
    return WordTokenizer(checkpoint.tokenizer).padded_json(encoder.length)


def _write_common(
    root: Path,
    checkpoint: Checkpoint,
    vectors: Mapping[str, ReferenceVectors],
    held: Mapping[str, _Held],
    recipe: Path | None,
) -> None:
    """What all targets share: tokenizer, the recipe of mixed precision, for every picture size test vectors and preview."""
    from safetensors.numpy import save_file

    from snapgen_deploy.drawing.pipeline import to_bytes

    forget(root)
    shutil.rmtree(root / PARTS, ignore_errors=True)  # there where an interrupted run may be taken up again
    if recipe is not None:
        copy_into(root, recipe)
    if text := _tokenizer_of(checkpoint):
        (root / "tokenizer.json").write_text(text, encoding="utf-8")
    for number, (size, of) in enumerate(vectors.items()):
        other = size if number else None
        # one metadata key only: the library writes several in an order that changes from run to run
        save_file(of.arrays, root / vectors_name(other), {"prompts": json.dumps(of.prompts)})
        if "picture" in of.arrays:
            columns = {"reference": [to_bytes(p[None]) for p in of.arrays["picture"]]}
            columns |= {key: list(one.checks[size].pictures) for key, one in held.items() if one.checks[size].pictures}
            write_preview(root / preview_name(other), of.prompts, columns)
