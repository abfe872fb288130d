"""Estimates how long a picture takes on a device, with an interval and the basis of the estimate.

    picture = text encoder + steps * one step of the student + decoder + time outside of the components

The most reliable basis is used: `measured` (a saved measurement of this model on this device), `calibrated` (this host, by
micro-benchmarks), `fitted` (to published times) or `derived` (from a profile's published figures). Without any of these there
is no estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.names import STEP, TEXT_ENCODER, title_of
from snapgen_deploy.latency.estimate.cost_components import Costs, NoCosts, picture_costs, spelling_of
from snapgen_deploy.latency.estimate.estimate_basis import Basis, BasisKind, EstimatedDevice, Host, NoBasis, basis_of
from snapgen_deploy.latency.estimate.estimate_measured import find_measured, interval_ms, measured_parts, parts_ms
from snapgen_deploy.latency.estimate.machine import Machine, component_times
from snapgen_deploy.latency.results import Measurement
from snapgen_deploy.models import ModelConfig

__all__ = ["Estimate", "Host", "NoBasis", "estimate_picture", "find_measured", "plan_estimator"]


@dataclass(frozen=True)
class Estimate:
    """The estimated time of a picture, in ms."""

    ms: float
    low: float
    high: float
    basis: BasisKind
    parts: Mapping[str, float]  # ms: text encoders, student_step, decoder, beside; see `measured_parts`
    width: str
    resolution: tuple[int, int]
    steps: int
    target: str
    lines: tuple[str, ...]  # what it is based on
    batch: int = 1  # pictures that a call draws; the times are those of a call

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @property
    def line(self) -> str:
        """One line for a list of reasons, such as `1750 ms a picture (fitted, 1300 to 2300)`."""
        of = "a picture" if self.batch == 1 else f"for {self.batch} pictures, {self.ms / self.batch:.4g} ms each"
        return f"{self.ms:.4g} ms {of} ({self.basis}, {self.low:.4g} to {self.high:.4g})"


def estimate_picture(
    config: ModelConfig,
    width: str,
    resolution: tuple[int, int],
    device: EstimatedDevice,
    target: str,
    *,
    steps: int | None = None,
    precision: str | None = None,
    batch: int = 1,
) -> Estimate | NoBasis:
    """Estimate the time of a picture at one width and picture size.

    Args:
        config: The model.
        width: Name of the sub-network.
        resolution: Height and width of the picture.
        device: A device profile, or this machine.
        target: `name` or `name:variant`.
        steps: Denoising steps. Default: the model's own number.
        precision: Use only measurements at this precision. Other kinds of basis do not depend on it.
        batch: Pictures that a call draws; the time is that of a call.

    Returns:
        The estimate, or the reason why there is none.

    Raises:
        BadInput: if the model has no such width or picture size, steps are below 1, or the target is not known.
    """
    count = config.steps if steps is None else steps
    if count < 1:
        raise BadInput(f"got {count} steps, expected 1 or more")
    spelling_of(target)  # an unknown target is bad input, not a missing basis
    threads = device.threads if isinstance(device, Host) else None
    known = find_measured(device.id, target, config.name, width, resolution, precision=precision, threads=threads, batch=batch)
    if known is not None:
        return from_measurement(known, count)
    basis = basis_of(device, target)
    if isinstance(basis, NoBasis):
        return basis
    try:
        costs = picture_costs(config, width, resolution, target, batch)
    except NoCosts as error:
        return NoBasis(str(error))
    return from_costs(costs, basis, width, resolution, count, target, batch=batch)


def from_measurement(measurement: Measurement, steps: int) -> Estimate:
    """A saved measurement as an estimate. For another number of steps, each step costs as much as a measured one."""
    m, (middle, low, high) = measurement, interval_ms(measurement)
    parts = parts_ms(m)
    more = (steps - m.steps) * parts[STEP]
    how = f"{m.key.backend} {m.key.precision}, {m.key.runtime_version}"
    line = f"measured: {len(m.samples())} pictures of {m.bundle}, {m.key.soc}, {how}"
    lines = (line,) if steps == m.steps else (line, f"measured with {m.steps} steps; the others are counted at the same cost")
    figures = (middle + more, low + more, high + more)
    return Estimate(*figures, "measured", parts, m.width, m.resolution, steps, m.key.backend, lines, m.batch)


def from_costs(
    costs: Costs, basis: Basis, width: str, resolution: tuple[int, int], steps: int, target: str, *, batch: int = 1
) -> Estimate:
    """Apply the machines of a basis to the operations of a picture, or of `batch` pictures, which are encoded one by one.

    Doubt about a component stretches its share of the interval.
    """
    costs = {name: ops * batch if name.startswith(TEXT_ENCODER) else ops for name, ops in costs.items()}
    doubts = {name: doubt for name, ops in costs.items() if (doubt := basis.doubt(ops)) is not None}
    middle = picture_parts(costs, basis.machine)
    low = picture_parts(costs, basis.fast, {name: 1 / doubt.faster for name, doubt in doubts.items()})
    high = picture_parts(costs, basis.slow, {name: doubt.slower for name, doubt in doubts.items()})
    ms, least, most = (sum(p.values()) + (steps - 1) * p[STEP] for p in (middle, low, high))
    lines = (*basis.lines, *(f"{width}, {title_of(name)}: {doubt.line}" for name, doubt in doubts.items()))
    return Estimate(ms, least, most, basis.kind, middle, width, resolution, steps, target, lines, batch)


def picture_parts(costs: Costs, machine: Machine, stretched: Mapping[str, float] = MappingProxyType({})) -> dict[str, float]:
    """Times in ms of the components, some of them times a factor, with one step of the student."""
    seconds = {name: stretched.get(name, 1.0) * component_times(machine, ops).seconds for name, ops in costs.items()}
    return measured_parts({name: 1e3 * s for name, s in seconds.items()}, 1e3 * machine.picture)


def plan_estimator(
    config: ModelConfig, device: EstimatedDevice, resolution: tuple[int, int] | None = None, batch: int = 1
) -> Callable[[str, str, str], Estimate | None]:
    """A function (width, target key, precision) -> estimate for `make_plan`; None if there is no basis."""

    def of(width: str, target: str, precision: str) -> Estimate | None:
        size = resolution or config.resolution
        found = estimate_picture(config, width, size, device, target, precision=precision, batch=batch)
        return found if isinstance(found, Estimate) else None

    return of
