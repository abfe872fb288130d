"""Estimates and measurements in pairs: the estimate in a manifest or in a measurement's environment, and the measured time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from snapgen_deploy.report.views import BundleView, EstimateView, MeasuredView

# An estimate is in the manifest's list "estimates" of {"target", "ms", "low_ms", "high_ms", "basis"}, for the bundle's device,
# or under these keys in a measurement's environment, for the measured device.
ESTIMATE, LOW, HIGH, BASIS = "estimate_ms", "estimate_low_ms", "estimate_high_ms", "estimate_basis"


def estimates_of(bundle: BundleView, manifest: Mapping[str, Any], measured: Sequence[MeasuredView]) -> list[EstimateView]:
    """Rows for one bundle: every measurement, every estimate of the manifest, and an empty row for a target with neither.

    Raises:
        ValueError: if an estimate is not a number of milliseconds above 0.
    """
    estimated = {str(e["target"]): e for e in manifest.get("estimates", ())}
    rows: list[EstimateView] = []
    for target in bundle.targets:
        ours = [v for v in measured if v.owner == bundle.label and v.measurement.key.backend == target.key]
        rows += [_measured_row(bundle, target.key, v) for v in ours]
        if target.key in estimated or not ours:
            e = estimated.get(target.key, {})
            figures = [_positive(e.get(k)) for k in ("ms", "low_ms", "high_ms")]
            basis = str(e.get("basis", ""))
            rows.append(EstimateView(bundle.label, target.key, bundle.device, figures[0], figures[1], figures[2], basis, None))
    return rows


def _measured_row(bundle: BundleView, target: str, view: MeasuredView) -> EstimateView:
    environment, samples = view.measurement.environment, view.measurement.samples()
    figures = [_positive(environment.get(k)) for k in (ESTIMATE, LOW, HIGH)]
    median = statistics.median(samples) if samples else None
    basis = str(environment.get(BASIS, ""))
    return EstimateView(bundle.label, target, view.measurement.key.soc, figures[0], figures[1], figures[2], basis, median)


def _positive(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"an estimate: got {value!r}, expected milliseconds above 0")
    return number
