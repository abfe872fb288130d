"""What the fp32 reference draws for an export, in child processes: test vectors, and pictures to calibrate and judge with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from snapgen_deploy.check.fidelity import draw_reference
from snapgen_deploy.checkpoint import CheckpointPlace
from snapgen_deploy.checkpoint.networks import load_student
from snapgen_deploy.drawing.prompts import Sample
from snapgen_deploy.drawing.reference import ReferenceVectors, make_vectors, with_tuned
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.job.calibration import Calibration, is_calibrated
from snapgen_deploy.job.memory import REFERENCE_PROCESS
from snapgen_deploy.job.state import ExportJob, MixedRecipe, Reference
from snapgen_deploy.plan.plan import ExportPlan, TargetPlan
from snapgen_deploy.quantise.recipe import load_recipe
from snapgen_deploy.quantise.trajectories import Recording
from snapgen_deploy.system.child import run_in_child
from snapgen_deploy.system.progress import OnProgress, ignore_progress

CALIBRATION_FOLDER, FIDELITY_FOLDER = "calibration", "fidelity"  # in the job's scratch folder


@dataclass(frozen=True)
class VectorsTask:
    """The test vectors to draw, for a process of its own."""

    checkpoint: CheckpointPlace
    plan: ExportPlan
    samples: tuple[Sample, ...]
    recipe: Path | None  # folder of the recipe of mixed precision
    threads: int


def reference_vectors(job: ExportJob, recipe: MixedRecipe) -> Reference:
    """Draw the test vectors of all picture sizes."""
    request, plan = job.request, job.plan
    task = VectorsTask(request.checkpoint, plan, request.samples, recipe.folder, request.threads)
    with job.progress(f"drawing {len(request.samples) + len(plan.other_sizes)} reference pictures") as on_progress:
        vectors, peak = run_in_child("reference", draw_vectors, task, on_progress=on_progress)
    return Reference(vectors, peak)


def draw_calibration(job: ExportJob, plan: ExportPlan, target: TargetPlan) -> int:
    """Draw the calibration pictures that the target's quantiser needs, once for all targets.

    Returns:
        The process's peak memory in bytes. 0 if nothing was drawn: the target is not calibrated, the user gave arrays, or the
        pictures exist.
    """
    calibration, folder = job.request.calibration, job.stage.scratch / CALIBRATION_FOLDER
    if calibration is None or calibration.arrays is not None or not is_calibrated(target):
        return 0
    with job.room.alone:
        return 0 if folder.is_dir() else _draw_calibration(job, plan, calibration, folder)


def _draw_calibration(job: ExportJob, plan: ExportPlan, calibration: Calibration, folder: Path) -> int:
    recording = Recording(
        job.request.checkpoint, plan.width, plan.latent, calibration.samples, folder=folder, threads=job.request.threads
    )
    with job.working(f"drawing {len(calibration.samples)} calibration pictures", REFERENCE_PROCESS) as on_progress:
        _, peak = run_in_child("calibration", record_calibration, recording, on_progress=on_progress)
    return peak


def draw_for_fidelity(job: ExportJob) -> int:
    """Draw the reference pictures of the fidelity gate.

    Returns:
        The process's peak memory in bytes. 0 if nothing was drawn: the gate judges no target that runs on this computer.
    """
    fidelity, plan = job.request.fidelity, job.plan
    if fidelity is None or not any(fidelity.judges(t) and _runs_here(t) for t in plan.targets):
        return 0
    recording = Recording(
        job.request.checkpoint,
        plan.width,
        plan.latent,
        fidelity.samples,
        folder=job.stage.scratch / FIDELITY_FOLDER,
        threads=job.request.threads,
    )
    with job.progress(f"drawing {len(fidelity.samples)} reference pictures for the fidelity gate") as on_progress:
        _, peak = run_in_child("fidelity reference", draw_reference, recording, fidelity.scorer, on_progress=on_progress)
    return peak


def _runs_here(target: TargetPlan) -> bool:
    found, variant = target_of(target.key)
    return found.unavailable(variant) is None


def draw_vectors(task: VectorsTask, on_progress: OnProgress = ignore_progress) -> dict[str, ReferenceVectors]:
    """Draw every prompt at the default picture size, and the first prompt at the others. Runs in a child process.

    Raises:
        BadInput: if the recipe of mixed precision was removed or changed meanwhile, or the reference returns NaN or infinity.
    """
    import torch

    torch.set_num_threads(task.threads)
    checkpoint, plan = task.checkpoint.open(), task.plan
    samples = {size: task.samples if size == plan.sizes[0] else task.samples[:1] for size in plan.sizes}
    found = {
        size: make_vectors(checkpoint, plan.at(size), [s.prompt for s in of], [s.seed for s in of], on_progress)
        for size, of in samples.items()
    }
    if task.recipe is None:
        return found
    recipe = load_recipe(task.recipe)
    if recipe is None:
        raise BadInput(f"the recipe in {task.recipe} was removed or changed while it was used; export again")
    tuned = recipe.apply(load_student(checkpoint, plan.width))
    return {size: with_tuned(vectors, tuned, checkpoint.config) for size, vectors in found.items()}


def record_calibration(recording: Recording, on_progress: OnProgress = ignore_progress) -> None:
    """Record the inputs of every component while the reference draws the samples. Runs in a child process."""
    recording.run(recording.checkpoint.open(), on_progress)
