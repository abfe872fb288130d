"""Estimates of a bundle's speed: for its manifest, and for the environment of a measurement."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from snapgen_deploy.bundle.reader import Bundle
from snapgen_deploy.device_profiles import Profile
from snapgen_deploy.export.base import Role
from snapgen_deploy.job.speed_estimate import SpeedEstimate
from snapgen_deploy.latency.estimate.cost import total
from snapgen_deploy.latency.estimate.cost_components import Costs, NoCosts, picture_costs
from snapgen_deploy.latency.estimate.estimate import from_costs
from snapgen_deploy.latency.estimate.estimate_basis import EstimatedDevice, Host, NoBasis, basis_of
from snapgen_deploy.latency.results import Measurement
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.plan.plan import ExportPlan


def of_plan(config: ModelConfig, plan: ExportPlan, profile: Profile) -> SpeedEstimate:
    """The estimates for a plan, from its graphs alone: the same plan gives the same figures, whatever was measured since."""
    costs = {}
    for t in plan.targets:
        with contextlib.suppress(NoCosts):
            costs[t.key] = picture_costs(config, plan.width, plan.resolution, t.key, plan.batch)
    macs: dict[str, Mapping[Role, int]] = {
        key: {role: total(ops).macs for role, ops in found.items()} for key, found in costs.items()
    }
    listed = [_entry(config, plan, found, profile, key) for key, found in costs.items()]
    return SpeedEstimate(macs, tuple(e for e in listed if e is not None))


def for_measurement(bundle: Bundle, measurement: Measurement, *, on_host: bool) -> dict[str, str]:
    """The estimate for a measurement's environment; empty if there is none.

    With `on_host`, this machine's, if it is calibrated; else the one in the manifest, for the bundle's device.
    """
    m = measurement
    if on_host:
        try:
            costs = picture_costs(bundle.config, m.width, m.resolution, m.key.backend, m.batch)
        except NoCosts:  # a bundle does not build a user's own network
            return {}
        found = _entry(bundle.config, m, costs, Host(m.key.threads), m.key.backend)
    else:
        found = next((e for e in bundle.manifest.get("estimates", ()) if e["target"] == m.key.backend), None)
    names = ("ms", "low_ms", "high_ms", "basis")
    return {f"estimate_{name}": str(found[name]) for name in names} if found else {}


def _entry(
    config: ModelConfig, drawn: ExportPlan | Measurement, costs: Costs, device: EstimatedDevice, target: str
) -> dict[str, Any] | None:
    basis = basis_of(device, target)
    if isinstance(basis, NoBasis):
        return None
    e = from_costs(costs, basis, drawn.width, drawn.resolution, config.steps, target, batch=drawn.batch)
    found = {"target": target, "ms": e.ms, "low_ms": e.low, "high_ms": e.high, "basis": e.basis}
    return found if drawn.batch == 1 else found | {"pictures": drawn.batch, "ms_per_picture": e.ms / drawn.batch}
