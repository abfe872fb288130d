"""What an export of fewer bits needs besides the conversion: inputs to calibrate with, and the fidelity gate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapgen_deploy.check.fidelity import Fidelity, draw_reference, fidelity_gates, measure
from snapgen_deploy.check.gates import Gate
from snapgen_deploy.checkpoint import Checkpoint, open_checkpoint
from snapgen_deploy.drawing.prompts import Sample
from snapgen_deploy.drawing.reference import schedule_of
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Artifact, Role
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.job.calibration import is_calibrated
from snapgen_deploy.plan.plan import ExportPlan, TargetPlan
from snapgen_deploy.quantise.trajectories import record
from snapgen_deploy.system.child import run_in_child
from snapgen_deploy.system.progress import Done, Progress, untold

if TYPE_CHECKING:
    from snapgen_deploy.job.request import Request

CALIBRATION, FIDELITY = "calibration", "fidelity"  # folders of what the reference draws beforehand


def calibration_key(request: Request, plan: ExportPlan) -> str:
    """Hash of what quantisers look at; nothing where no precision of the plan is calibrated."""
    if not any(is_calibrated(t) for t in plan.targets):
        return ""
    if request.calibration is None:
        raise BadInput("a precision of this plan is calibrated: give prompts with --calibration")
    return request.calibration.sha256()


def draw_calibration(request: Request, plan: ExportPlan, target: TargetPlan, scratch: Path, progress: Progress) -> int:
    """Draw with the reference, once for all targets, what the target's quantiser looks at; the process's peak in bytes.

    0, and nothing is drawn, where the target is not calibrated, the user gave arrays, or it was drawn before.
    """
    calibration, folder = request.calibration, scratch / CALIBRATION
    if calibration is None or calibration.arrays is not None or not is_calibrated(target) or folder.is_dir():
        return 0
    with progress(f"drawing {len(calibration.samples)} calibration pictures") as tell:
        arguments = (request.checkpoint, request.key_map, plan.width, plan.latent, calibration.samples, folder, request.threads)
        _, peak = run_in_child("calibration", record_calibration, *arguments, tell=tell)
    return peak


def draw_for_fidelity(request: Request, plan: ExportPlan, scratch: Path, progress: Progress) -> int:
    """Draw with the reference what the fidelity gate compares with; the process's peak in bytes, 0 where nobody asks."""
    fidelity = request.fidelity
    if fidelity is None or not any(fidelity.judges(t) for t in plan.targets):
        return 0
    with progress(f"drawing {len(fidelity.samples)} reference pictures for the fidelity gate") as tell:
        shared = (request.checkpoint, request.key_map, plan.width, plan.latent)
        arguments = (fidelity.samples, scratch / FIDELITY, fidelity.scorer, request.threads)
        _, peak = run_in_child("fidelity reference", draw_reference, *shared, *arguments, tell=tell)
    return peak


def record_calibration(
    path: Path | None,
    key_map: Path | None,
    width: str,
    latent: tuple[int, int, int],
    samples: tuple[Sample, ...],
    folder: Path,
    threads: int,
    tell: Done = untold,
) -> None:
    """In a child process: what every component sees when the reference draws the samples."""
    import torch

    torch.set_num_threads(threads)
    record(open_checkpoint(path, key_map), width, latent, samples, folder, lambda done: tell(done, len(samples)))


def judge(
    request: Request,
    wanted: Fidelity,
    checkpoint: Checkpoint,
    target: TargetPlan,
    artifacts: Mapping[Role, Artifact],
    scratch: Path,
    progress: Progress,
) -> tuple[tuple[Gate, ...], dict[str, Any], int]:
    """The gates of one target's saved files over all samples, what was measured, and the process's peak in bytes."""
    found, variant = target_of(target.key)
    if (reason := found.unavailable(variant)) is not None:
        return (Gate(target.key, "pipeline", "fidelity_psnr", None, target.limits.least_psnr, "not_run", reason),), {}, 0
    with progress(f"{target.key}: drawing {len(wanted.samples)} pictures at {target.precision}") as tell:
        measured, peak = run_in_child(
            f"{target.key} fidelity", measure, target.key, artifacts, checkpoint.config, schedule_of(checkpoint.config),
            scratch / FIDELITY, wanted.scorer, request.threads, tell=tell,
        )  # fmt: skip
    return fidelity_gates(target.key, measured, target.limits, wanted.unscored), measured.as_dict(), peak
