"""How fast a bundle will be, estimated before it runs. The code that estimates is passed to the job as a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from snapgen_deploy.export.base import Role
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.plan.plan import ExportPlan


@dataclass(frozen=True)
class SpeedEstimate:
    """The estimates for one picture size, by target key."""

    macs: Mapping[str, Mapping[Role, int]]  # target -> role -> multiply-accumulates of one call
    estimates: tuple[Mapping[str, Any], ...]  # one for each target that can be estimated: target, ms, low_ms, high_ms, basis


EstimateSpeed = Callable[[ModelConfig, ExportPlan], SpeedEstimate]  # takes a plan of one picture size
