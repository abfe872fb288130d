"""The iPhone 16 Pro Max as a machine, fitted to published times.

Three free parameters for five points: a MAC rate, the bandwidth of streams between operations (partly through on-chip memory),
and the bandwidth of scores that spill. MAC rate and spill bandwidth are bounded by the published peaks in the profile. The size
of on-chip memory is fixed beforehand (`published.ON_CHIP`). The fit minimises squared log errors.
The interval is exp(+- t * rms) of the leave-one-out log errors, Student's t for a 90 % interval with points - parameters
degrees of freedom.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from snapgen_deploy.families.names import DECODER
from snapgen_deploy.latency.estimate.cost_ops import OP_KINDS
from snapgen_deploy.latency.estimate.machine import Machine, Rate
from snapgen_deploy.latency.estimate.published import ON_CHIP, PICTURE_MS, POINTS, Load, Point

PEAK_MACS = 17.5e12 / 2  # per second, fp16: half of 35 TOPS, two operations per MAC (profile iphone16pm)
PEAK_BANDWIDTH = 60e9  # bytes per second (profile iphone16pm)
STREAM_LIMIT = 10 * PEAK_BANDWIDTH  # on-chip memory is faster than main memory; how much is not published
_STEPS = 4  # steps of the published picture


@dataclass(frozen=True)
class Accelerator:
    """Fitted rates, per second."""

    macs: float
    stream: float  # bytes
    spill: float  # bytes

    def ms(self, load: Load) -> float:
        """Time of a component: the roofline and the spill of `machine.Machine` with `overlap`."""
        return 1e3 * (max(load.macs / self.macs, load.moved / self.stream) + load.spilled / self.spill)


@dataclass(frozen=True)
class LeftOut:
    """One published point, and its prediction from the other points."""

    name: str
    published_ms: float
    fitted_ms: float  # with all points
    predicted_ms: float  # without this one

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted_ms / self.published_ms - 1


@dataclass(frozen=True)
class Fit:
    """The accelerator, its leave-one-out errors, and the time of a picture outside of its components."""

    accelerator: Accelerator
    points: tuple[LeftOut, ...]
    factor: float  # the 90 % interval is estimate / factor ... estimate * factor
    picture_ms: float

    @property
    def machine(self) -> Machine:
        """The accelerator as a machine."""
        a = self.accelerator
        rates: Mapping[str, Rate] = {kind: Rate(mac=1 / a.macs, read=1 / a.stream) for kind in OP_KINDS if kind != "view"}
        return Machine(rates, picture=self.picture_ms / 1e3, on_chip=ON_CHIP, spill=1 / a.spill, overlap=True)


def fit_accelerator(points: Sequence[Point]) -> Accelerator:
    """Fit the rates: the smallest sum of squared log errors within the bounds."""
    from scipy.optimize import least_squares

    scale = np.array([PEAK_MACS, PEAK_BANDWIDTH, PEAK_BANDWIDTH])
    bounds = ([0.05, 1.0, 0.05], [1.0, STREAM_LIMIT / PEAK_BANDWIDTH, 1.0])

    def errors(shares: np.ndarray) -> list[float]:
        accelerator = Accelerator(*(shares * scale))
        return [math.log(accelerator.ms(p.load) / p.ms) for p in points]

    starts = ((0.7, 2.0, 0.7), (0.9, 4.0, 0.4), (0.5, 1.5, 0.3))  # max() has corners: more than one start
    best = min((least_squares(errors, start, bounds=bounds) for start in starts), key=lambda s: float(s.cost))
    return Accelerator(*(float(v) for v in best.x * scale))


@functools.cache
def fitted() -> Fit:
    """The fit to all points, with the leave-one-out prediction of each."""
    from scipy import stats

    accelerator = fit_accelerator(POINTS)
    points = tuple(
        LeftOut(p.name, p.ms, accelerator.ms(p.load), fit_accelerator([q for q in POINTS if q is not p]).ms(p.load))
        for p in POINTS
    )
    rms = math.sqrt(sum(math.log1p(p.error) ** 2 for p in points) / len(points))
    factor = math.exp(float(stats.t.ppf(0.95, len(POINTS) - len(vars(accelerator)))) * rms)
    known = {p.name: p.ms for p in POINTS}
    return Fit(accelerator, points, factor, PICTURE_MS - _STEPS * known["small"] - known[DECODER])
