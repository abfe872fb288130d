"""The stage that holds the reference against golden vectors.

It comes before any conversion, so that a wrong configuration costs seconds.
"""

from __future__ import annotations

from snapgen_deploy.check.gates import Gate, failed
from snapgen_deploy.check.golden import GoldenTask, HeldReference, hold_reference
from snapgen_deploy.errors import GatesFailed
from snapgen_deploy.job.state import ExportJob
from snapgen_deploy.system.child import run_in_child

SECONDS = 60.0  # to look for the cause of each component that disagrees; `inspect --golden` takes longer


def golden_gates(job: ExportJob) -> tuple[Gate, ...]:
    """The reference's gates on golden vectors; none where there are no vectors.

    Raises:
        GatesFailed: if one did not hold; the message has the cause.
    """
    request = job.request
    if request.golden is None:
        return ()
    task = GoldenTask(request.checkpoint, job.plan.width, request.golden, request.threads, SECONDS)
    with job.progress("holding the reference against golden vectors") as on_progress:
        held, _ = run_in_child("golden vectors", hold_reference, task, on_progress=on_progress)
    refuse_other_reference(held)
    return held.gates


def refuse_other_reference(held: HeldReference) -> None:
    """GatesFailed where the reference is not the network that the golden vectors are of."""
    if bad := failed(held.gates):
        said = "; ".join(f"{g.where} {g.name} = {g.value:.3g}, limit {g.limit:g}{_why(held, g)}" for g in bad)
        head = f"{len(bad)} of {len(held.gates)} golden gates of the reference failed, nothing was converted"
        raise GatesFailed(f"{head}: {said}", [g.as_dict() for g in held.gates])


def _why(held: HeldReference, gate: Gate) -> str:
    return f": {held.causes[gate.component]}" if gate.component in held.causes else ""
