"""What is handed from stage to stage of an export: the job that was begun, and what every stage made.

The stages stand in `job.run`. A stage takes the job and what earlier ones returned, and returns a value of its own; none
changes what it was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapgen_deploy.check.gates import Checked, Gate
from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.drawing.reference import ReferenceVectors
from snapgen_deploy.export.base import Role
from snapgen_deploy.job.records import Exported
from snapgen_deploy.job.request import Request
from snapgen_deploy.job.speed_estimate import SpeedEstimate
from snapgen_deploy.job.staging import Staging
from snapgen_deploy.plan.plan import ExportPlan
from snapgen_deploy.system.progress import Counting, Progress


@dataclass(frozen=True)
class ExportJob:
    """An export that was begun: what it is asked for, what it works on, and where."""

    request: Request
    plan: ExportPlan
    checkpoint: Checkpoint
    before: list[tuple[int, int, int]]  # `stamps` of the checkpoint's files as it was opened
    speed_estimates: Mapping[str, SpeedEstimate]  # by picture size
    stage: Staging
    progress: Progress
    counting: Counting


@dataclass(frozen=True)
class MixedRecipe:
    """The recipe of mixed precision, where the plan has it."""

    folder: Path | None = None  # None: no target is of mixed precision
    peak_bytes: int = 0  # of the process that made it; 0 where it was there


@dataclass(frozen=True)
class Reference:
    """What the reference drew for gates, test vectors and preview."""

    vectors: Mapping[str, ReferenceVectors]  # by picture size, the default one first
    peak_bytes: int  # of the process that drew


@dataclass(frozen=True)
class CheckedFiles:
    """What came out when a target's saved files were run."""

    by_size: Mapping[str, Checked]  # by picture size, the default one first
    peak_bytes: int


@dataclass(frozen=True)
class Judgement:
    """What the fidelity gate found of a target."""

    gates: tuple[Gate, ...] = ()
    record: Mapping[str, Any] | None = None  # for the manifest; None where the gate was not asked for
    peak_bytes: int = 0


@dataclass(frozen=True)
class TargetResult:
    """One target of a bundle: its components, and what was found of them."""

    parts: Mapping[Role, Exported]
    checked: CheckedFiles
    judgement: Judgement

    @property
    def gates(self) -> list[Gate]:
        """Those of every picture size, the fidelity gate's after the default size's."""
        first, *others = self.checked.by_size.values()
        return [*first.gates, *self.judgement.gates, *(gate for one in others for gate in one.gates)]

    @property
    def check_peak_bytes(self) -> int:
        """Of the largest process that ran the saved files."""
        return max(self.checked.peak_bytes, self.judgement.peak_bytes)


@dataclass(frozen=True)
class Made:
    """All that the stages made before the bundle is written."""

    recipe: MixedRecipe
    reference: Reference
    drawing_peak_bytes: int  # of the largest process in which the reference drew
    targets: Mapping[str, TargetResult]  # by key

    @property
    def gates(self) -> list[Gate]:
        """Of all targets."""
        return [gate for target in self.targets.values() for gate in target.gates]

    @property
    def peak_bytes(self) -> int:
        """Of the largest process; of a cached component that of its conversion."""
        converting = (part.peak_bytes for parts in self.parts.values() for part in parts.values())
        checking = (target.check_peak_bytes for target in self.targets.values())
        return max(self.drawing_peak_bytes, self.recipe.peak_bytes, *converting, *checking)

    @property
    def parts(self) -> dict[str, Mapping[Role, Exported]]:
        """Target -> role -> component."""
        return {key: target.parts for key, target in self.targets.items()}
