"""What decides a component's files besides the plan, and the component's key in the cache."""

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
    """A checkpoint, the inputs for calibrated quantisers, and the folder of the recipe of mixed precision."""

    checkpoint: Checkpoint
    calibration: Calibration | None
    recipe: Path | None  # None without mixed precision, or before the recipe exists

    def key(self, plan: ExportPlan, target: TargetPlan, role: Role) -> str:
        """A component's key in the cache. It covers calibration inputs and the recipe, if the component uses them."""
        calibration = self.calibration.sha256() if self.calibration is not None and is_calibrated(target) else ""
        return export_key(self.checkpoint, plan, target, role, calibration + self.recipe_sha256(target, role))

    def recipe_sha256(self, target: TargetPlan, role: Role) -> str:
        """Hash of the recipe that a component uses; empty if it uses none, or before the recipe exists.

        A hash of the recipe's settings would not do: made again with another number of threads, it differs in the last bits.
        """
        takes = components_of(self.checkpoint.config)[role].takes_recipe
        if self.recipe is None or not takes or target.precision != "mixed":
            return ""
        return sha256_of(self.recipe / RECIPE)
