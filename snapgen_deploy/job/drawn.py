"""What the fp32 reference draws for an export, in processes of their own: test vectors, and pictures to calibrate and judge."""

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
from snapgen_deploy.job.calibration import is_calibrated
from snapgen_deploy.job.state import ExportJob, MixedRecipe, Reference
from snapgen_deploy.plan.plan import ExportPlan, TargetPlan
from snapgen_deploy.quantise.recipe import load_recipe
from snapgen_deploy.quantise.trajectories import Recording
from snapgen_deploy.system.child import run_in_child
from snapgen_deploy.system.progress import OnProgress, ignore_progress

CALIBRATION_FOLDER, FIDELITY_FOLDER = "calibration", "fidelity"  # in the job's scratch folder


@dataclass(frozen=True)
class VectorsTask:
    """Test vectors that are to be drawn, for a process of its own."""

    checkpoint: CheckpointPlace
    plan: ExportPlan
    samples: tuple[Sample, ...]
    recipe: Path | None  # folder of the recipe of mixed precision
    threads: int


def reference_vectors(job: ExportJob, recipe: MixedRecipe) -> Reference:
    """The test vectors of all picture sizes."""
    request, plan = job.request, job.plan
    task = VectorsTask(request.checkpoint, plan, request.samples, recipe.folder, request.threads)
    with job.progress(f"drawing {len(request.samples) + len(plan.other_sizes)} reference pictures") as on_progress:
        vectors, peak = run_in_child("reference", draw_vectors, task, on_progress=on_progress)
    return Reference(vectors, peak)


def draw_calibration(job: ExportJob, plan: ExportPlan, target: TargetPlan) -> int:
    """Draw, once for all targets, what the target's quantiser looks at; the process's peak in bytes.

    0, and nothing is drawn, where the target is not calibrated, the user gave arrays, or it was drawn before.
    """
    calibration, folder = job.request.calibration, job.stage.scratch / CALIBRATION_FOLDER
    if calibration is None or calibration.arrays is not None or not is_calibrated(target) or folder.is_dir():
        return 0
    recording = Recording(
        job.request.checkpoint, plan.width, plan.latent, calibration.samples, folder=folder, threads=job.request.threads
    )
    with job.progress(f"drawing {len(calibration.samples)} calibration pictures") as on_progress:
        _, peak = run_in_child("calibration", record_calibration, recording, on_progress=on_progress)
    return peak


def draw_for_fidelity(job: ExportJob) -> int:
    """Draw what the fidelity gate compares with; the process's peak in bytes.

    0, and nothing is drawn, where the gate judges no target, or none that runs on this computer.
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
    """In a child process: the test vectors by picture size; every prompt at the default size, the first one at the others."""
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
    """In a child process: what every component sees when the reference draws the samples."""
    recording.run(recording.checkpoint.open(), on_progress)
