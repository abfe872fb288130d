"""The stages that run a target's saved files: the gates on the test vectors, then the fidelity gate over many prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from snapgen_deploy.check.fidelity import fidelity_gates, measure_fidelity
from snapgen_deploy.check.gates import Gate, SavedTarget, check_sizes, failed
from snapgen_deploy.drawing.reference import schedule_of
from snapgen_deploy.errors import GatesFailed
from snapgen_deploy.export.base import Role
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.job.drawn import FIDELITY_FOLDER
from snapgen_deploy.job.records import Exported
from snapgen_deploy.job.state import CheckedFiles, ExportJob, Judgement, Reference, TargetResult
from snapgen_deploy.plan.plan import TargetPlan
from snapgen_deploy.system.child import run_in_child


def check_files(job: ExportJob, target: TargetPlan, parts: Mapping[Role, Exported], reference: Reference) -> CheckedFiles:
    """Run a target's saved files and compare them with the reference's test vectors."""
    saved = {size: _saved(job, target, parts, size) for size in job.plan.sizes}
    default = job.plan.sizes[0]
    saved[default] = replace(saved[default], golden=job.golden)
    with job.working(f"{target.key}: running what was saved", target.key) as on_progress:
        checked, peak = run_in_child(f"{target.key} check", check_sizes, saved, reference.vectors, on_progress=on_progress)
    for machine in dict.fromkeys((*target.spec.also_on, *job.request.check_on)):
        there = {size: replace(files, on=machine) for size, files in saved.items()}
        what = f"{target.key} check on {machine}"
        with job.working(f"{target.key}: running what was saved on {machine}", target.key) as on_progress:
            found, used = run_in_child(what, check_sizes, there, reference.vectors, on_progress=on_progress)
        checked = {size: replace(one, gates=(*one.gates, *found[size].gates)) for size, one in checked.items()}
        peak = max(peak, used)
    return CheckedFiles(checked, peak)


def judge_fidelity(job: ExportJob, target: TargetPlan, parts: Mapping[Role, Exported]) -> Judgement:
    """Compare a target's files with the pictures of `draw_for_fidelity`, if the fidelity gate judges the target."""
    wanted = job.request.fidelity
    if wanted is None or not wanted.judges(target):
        return Judgement()
    found, variant = target_of(target.key)
    if (reason := found.unavailable(variant)) is not None:
        gate = Gate(target.key, "pipeline", "fidelity_psnr", None, target.limits.least_psnr, "not_run", reason)
        return Judgement((gate,), {})
    saved, folder = _saved(job, target, parts, job.plan.sizes[0]), job.stage.scratch / FIDELITY_FOLDER
    with job.working(f"{target.key}: drawing {len(wanted.samples)} pictures at {target.precision}", target.key) as on_progress:
        measured, peak = run_in_child(
            f"{target.key} fidelity", measure_fidelity, saved, folder, wanted.scorer, on_progress=on_progress
        )
    gates = fidelity_gates(target.key, measured, target.limits, wanted.unscored)
    return Judgement(gates, measured.as_dict(), peak)


def refuse_failed(targets: Mapping[str, TargetResult]) -> None:
    """Stop the export if a gate of any target failed.

    Raises:
        GatesFailed: with all gates, if one failed.
    """
    gates = [gate for target in targets.values() for gate in target.gates]
    if bad := failed(gates):
        message = f"{len(bad)} of {len(gates)} gates failed, no bundle was written: {'; '.join(map(_gate_text, bad))}"
        raise GatesFailed(message, [g.as_dict() for g in gates])


def _saved(job: ExportJob, target: TargetPlan, parts: Mapping[Role, Exported], size: str) -> SavedTarget:
    """The target's files at one picture size."""
    config = job.checkpoint.config
    return SavedTarget(
        key=target.key,
        precision=target.precision,
        limits=target.limits,
        artifacts={role: part.at(size).artifact for role, part in parts.items()},
        config=config,
        schedule=schedule_of(config),
        threads=job.request.threads,
        batch=job.plan.batch,
    )


def _gate_text(gate: Gate) -> str:
    if gate.value is None:
        return f"{gate.what} {gate.where} {gate.name}: {gate.detail}"
    return f"{gate.what} {gate.where} {gate.name} = {gate.value:.3g}, limit {gate.limit:g} {gate.detail}".strip()
