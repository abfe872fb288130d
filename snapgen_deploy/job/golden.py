"""The stage that holds the reference against golden vectors.

It comes before any conversion, so that a wrong configuration costs seconds.
"""

from __future__ import annotations

from dataclasses import replace

from snapgen_deploy.bundle.reader import GOLDEN
from snapgen_deploy.check.gates import Gate, failed
from snapgen_deploy.check.golden import GoldenTask, HeldReference, hold_reference
from snapgen_deploy.errors import GatesFailed
from snapgen_deploy.families.names import title_of
from snapgen_deploy.golden.own import OwnVectorsTask, held_to_libraries, write_own_vectors
from snapgen_deploy.golden.vectors import GoldenSize, open_golden
from snapgen_deploy.job.state import ExportJob
from snapgen_deploy.system.child import run_in_child

SECONDS = 60.0  # to look for the cause of each component that disagrees; `inspect --golden` takes longer


def golden_gates(job: ExportJob) -> tuple[Gate, ...]:
    """The reference's gates on golden vectors; none where there are no vectors.

    Raises:
        GatesFailed: if one did not hold; the message has the cause.
    """
    request = job.request
    if job.golden is None:
        return ()
    task = GoldenTask(request.checkpoint, job.plan.width, job.golden, request.threads, SECONDS)
    with job.progress("holding the reference against golden vectors") as on_progress:
        held, _ = run_in_child("golden vectors", hold_reference, task, on_progress=on_progress)
    refuse_other_reference(held)
    return held.gates


def with_libraries_vectors(job: ExportJob) -> ExportJob:
    """The job with golden vectors: the team's own, and of the components of libraries those that the libraries make.

    Raises:
        BadInput: if a library cannot load its component.
    """
    request, checkpoint = job.request, job.checkpoint
    libraries = held_to_libraries(checkpoint.config, request.golden) if request.hold_to_libraries else {}
    if not libraries:
        return replace(job, golden=request.golden)
    given, path = None if request.golden is None else request.golden.path, job.stage.scratch / GOLDEN
    drawing = GoldenSize(job.plan.width, job.plan.resolution, job.plan.latent)
    task = OwnVectorsTask(request.checkpoint, drawing, tuple(libraries), given, path, request.threads)
    said = ", ".join(f"{title_of(role)} with {library}" for role, library in libraries.items())
    with job.progress(f"computing golden vectors: {said}"):
        run_in_child("golden vectors", write_own_vectors, task)
    return replace(job, golden=open_golden(path, checkpoint.config, job.plan, checkpoint.tokenizers))


def refuse_other_reference(held: HeldReference) -> None:
    """GatesFailed where the reference is not the network that the golden vectors are of."""
    if bad := failed(held.gates):
        said = "; ".join(f"{g.where} {g.name} = {g.value:.3g}, limit {g.limit:g}{_why(held, g)}" for g in bad)
        head = f"{len(bad)} of {len(held.gates)} golden gates of the reference failed, nothing was converted"
        raise GatesFailed(f"{head}: {said}", [g.as_dict() for g in held.gates])


def _why(held: HeldReference, gate: Gate) -> str:
    return f": {held.causes[gate.component]}" if gate.component in held.causes else ""
