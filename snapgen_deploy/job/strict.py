"""`export --strict`: what is a warning otherwise fails a gate."""

from __future__ import annotations

from snapgen_deploy.check.gates import at_most
from snapgen_deploy.check.golden import OF_REFERENCE
from snapgen_deploy.errors import GatesFailed
from snapgen_deploy.golden.vectors import PIPELINE
from snapgen_deploy.plan.plan import ExportPlan

TRAINED_RESOLUTION = "untrained_resolutions"  # a gate's name; its value counts picture sizes


def refuse_warnings(plan: ExportPlan) -> None:
    """Fail for picture sizes that the checkpoint was not trained at.

    Raises:
        GatesFailed: if the plan warns of any; the message says which.
    """
    if plan.warnings:
        said = "; ".join(plan.warnings)
        gate = at_most(OF_REFERENCE, PIPELINE, TRAINED_RESOLUTION, float(len(plan.warnings)), 0.0, said)
        raise GatesFailed(
            f"1 gate failed, nothing was converted: {said}; leave out --strict to export even so", [gate.as_dict()]
        )
