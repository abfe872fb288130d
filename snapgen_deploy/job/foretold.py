"""What is known of a bundle's speed before it runs; whoever counts and estimates gives a job the function that tells it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from snapgen_deploy.export.base import Role
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.plan.plan import ExportPlan


@dataclass(frozen=True)
class Foretold:
    """Of one picture size, by the targets' keys."""

    macs: Mapping[str, Mapping[Role, int]]  # target -> role -> multiply-accumulates of one call
    estimates: tuple[Mapping[str, Any], ...]  # of every target with a basis: target, ms, low_ms, high_ms, basis


Foretell = Callable[[ModelConfig, ExportPlan], Foretold]  # a plan of one picture size -> its figures
