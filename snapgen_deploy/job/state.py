"""What the stages of an export pass to each other: the job, and the result of every stage.

`job.run` lists the stages. A stage takes the job and the results of earlier stages, and returns its own result; none changes
its arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapgen_deploy.check.gates import Checked, Gate
from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.drawing.reference import ReferenceVectors
from snapgen_deploy.export.base import Role
from snapgen_deploy.golden.vectors import GoldenVectors
from snapgen_deploy.job.records import Exported
from snapgen_deploy.job.request import Request
from snapgen_deploy.job.speed_estimate import SpeedEstimate
from snapgen_deploy.job.staging import Staging
from snapgen_deploy.plan.plan import ExportPlan
from snapgen_deploy.system.progress import Counting, OnProgress, Progress
from snapgen_deploy.system.side_by_side import Room


@dataclass(frozen=True)
class ExportJob:
    """An export that has begun: its input, and where it works."""

    request: Request
    plan: ExportPlan
    checkpoint: Checkpoint
    speed_estimates: Mapping[str, SpeedEstimate]  # by picture size
    stage: Staging
    progress: Progress
    counting: Counting
    room: Room
    predicted: Mapping[tuple[str, Role | None], int]  # peak bytes, by target and component; None: the check of the files
    golden: GoldenVectors | None = None  # of the default picture size: the team's own, and those that libraries make

    @contextmanager
    def working(self, what: str, target: str, role: Role | None = None) -> Iterator[OnProgress]:
        """A place for one process of a target's work, once there is memory for it; then it shows its progress."""
        with self.room.taken(what, self.predicted[target, role]), self.progress(what) as on_progress:
            yield on_progress


@dataclass(frozen=True)
class MixedRecipe:
    """The recipe of mixed precision, if the plan has it."""

    folder: Path | None = None  # None: no target has mixed precision
    peak_bytes: int = 0  # peak memory of the process that made it; 0 if it existed


@dataclass(frozen=True)
class Reference:
    """What the reference drew for gates, test vectors and preview."""

    vectors: Mapping[str, ReferenceVectors]  # by picture size, the default size first
    peak_bytes: int  # peak memory of the process


@dataclass(frozen=True)
class CheckedFiles:
    """The gates of a target's saved files, and the pictures that they drew."""

    by_size: Mapping[str, Checked]  # by picture size, the default size first
    peak_bytes: int  # peak memory of the process


@dataclass(frozen=True)
class Judgement:
    """The result of the fidelity gate for a target."""

    gates: tuple[Gate, ...] = ()
    record: Mapping[str, Any] | None = None  # for the manifest; None if the gate does not judge the target
    peak_bytes: int = 0  # peak memory of the process


@dataclass(frozen=True)
class TargetResult:
    """One target of a bundle: its components, and the results of their checks."""

    parts: Mapping[Role, Exported]
    checked: CheckedFiles
    judgement: Judgement

    @property
    def gates(self) -> list[Gate]:
        """The gates of every picture size; the fidelity gates come after those of the default size."""
        first, *others = self.checked.by_size.values()
        return [*first.gates, *self.judgement.gates, *(gate for one in others for gate in one.gates)]

    @property
    def check_peak_bytes(self) -> int:
        """Peak memory of the largest process that ran the saved files."""
        return max(self.checked.peak_bytes, self.judgement.peak_bytes)


@dataclass(frozen=True)
class Made:
    """Results of all stages before the bundle is written."""

    recipe: MixedRecipe
    reference: Reference
    drawing_peak_bytes: int  # peak memory of the largest process in which the reference drew
    targets: Mapping[str, TargetResult]  # by key
    golden: tuple[Gate, ...] = ()  # of the reference

    @property
    def gates(self) -> list[Gate]:
        """The gates of the reference on golden vectors, and those of all targets."""
        return [*self.golden, *(gate for target in self.targets.values() for gate in target.gates)]

    @property
    def peak_bytes(self) -> int:
        """Peak memory of the largest process; for a cached component, that of its conversion."""
        converting = (part.peak_bytes for parts in self.parts.values() for part in parts.values())
        checking = (target.check_peak_bytes for target in self.targets.values())
        return max(self.drawing_peak_bytes, self.recipe.peak_bytes, *converting, *checking)

    @property
    def parts(self) -> dict[str, Mapping[Role, Exported]]:
        """Target -> role -> component."""
        return {key: target.parts for key, target in self.targets.items()}
