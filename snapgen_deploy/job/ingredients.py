"""What components are made of besides the plan, and the key that the cache knows each of them by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.export.base import Role
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.job.cache import export_key
from snapgen_deploy.job.calibration import Calibration, is_calibrated
from snapgen_deploy.plan.plan import ExportPlan, TargetPlan
from snapgen_deploy.quantise.recipe import RECIPE
from snapgen_deploy.system.files import sha256_of


@dataclass(frozen=True)
class Ingredients:
    """A checkpoint, what calibrated quantisers look at, and the folder of the recipe of mixed precision."""

    checkpoint: Checkpoint
    calibration: Calibration | None
    recipe: Path | None  # None where the plan has no mixed precision, or before it is made

    def key(self, plan: ExportPlan, target: TargetPlan, role: Role) -> str:
        """What the cache knows a component by; what a calibrated quantiser looked at, and the recipe, are part of it."""
        calibration = self.calibration.sha256() if self.calibration is not None and is_calibrated(target) else ""
        return export_key(self.checkpoint, plan, target, role, calibration + self.recipe_sha256(target, role))

    def recipe_sha256(self, target: TargetPlan, role: Role) -> str:
        """Hash of the recipe that a component is made by; nothing for other components, or before it is made.

        Its settings would not do: a recipe that is made again with another number of threads differs in the last bits.
        """
        takes = components_of(self.checkpoint.config)[role].takes_recipe
        if self.recipe is None or not takes or target.precision != "mixed":
            return ""
        return sha256_of(self.recipe / RECIPE)
