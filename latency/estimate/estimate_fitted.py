"""The iPhone 16 Pro Max as a machine, fitted to published times.

Three free parameters for seven points: a MAC rate, the bandwidth of streams between operations (partly through on-chip
memory), and the bandwidth of what waits for main memory (`machine.excess`). MAC rate and the latter are bounded by the
published peaks in the profile. The size of on-chip memory is fixed beforehand (`published.ON_CHIP`).

No rates meet all points: each sum of `snapgen`'s load is below that of `tiny`, and it takes about as long. So that a point
whose graph differs from ours does not make all others worse, the fit minimises the Cauchy loss of log errors: errors well above
`TYPICAL_ERROR` hardly count. They do count for the interval, exp(+- t * rms) of the leave-one-out log errors, Student's t for
90 %. Its degrees of freedom are points - parameters - 1: terms and loss were chosen on the same points, after many others had
been tried. That is a rough allowance; there are too few points for a better one.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from snapgen_deploy.families.names import DECODER
from snapgen_deploy.latency.estimate.cost_ops import OP_KINDS
from snapgen_deploy.latency.estimate.machine import Machine, Rate
from snapgen_deploy.latency.estimate.published import ON_CHIP, PICTURE_TIMES, POINTS, Load, Point

PEAK_MACS = 17.5e12 / 2  # per second, fp16: half of 35 TOPS, two operations per MAC (profile iphone16pm)
PEAK_BANDWIDTH = 60e9  # bytes per second (profile iphone16pm)
STREAM_LIMIT = 10 * PEAK_BANDWIDTH  # on-chip memory is faster than main memory; how much is not published
TYPICAL_ERROR = 0.1  # of the logarithm of a time; our estimate of what a roofline misses
_CHOSEN = 1  # degrees of freedom that the choice of terms and loss takes
_STEPS = 4  # steps of the published pictures


@dataclass(frozen=True)
class Accelerator:
    """Fitted rates, per second."""

    macs: float
    stream: float  # bytes of activations
    spill: float  # bytes of `machine.excess`

    def ms(self, load: Load) -> float:
        """Time of a component: the roofline and the excess of `machine.Machine` with `overlap`."""
        return 1e3 * (max(load.macs / self.macs, load.moved / self.stream) + load.excess / self.spill)


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
    """Fit the rates: the smallest Cauchy loss of log errors within the bounds.

    The loss has several minima, and max() has corners. Therefore there is more than one start, and no use of gradients.
    """
    from scipy.optimize import minimize

    scale = np.array([PEAK_MACS, PEAK_BANDWIDTH, PEAK_BANDWIDTH])
    bounds = ((0.05, 1.0), (1.0, STREAM_LIMIT / PEAK_BANDWIDTH), (0.05, 1.0))

    def loss(shares: np.ndarray) -> float:
        accelerator = Accelerator(*(shares * scale))
        return sum(math.log1p((math.log(accelerator.ms(p.load) / p.ms) / TYPICAL_ERROR) ** 2) for p in points)

    def least(start: Sequence[float]) -> Any:
        options = {"xatol": 1e-6, "fatol": 1e-9, "maxiter": 2000}
        return minimize(loss, start, method="Nelder-Mead", bounds=bounds, options=options)

    starts = ((0.7, 2.0, 0.7), (0.9, 4.0, 0.4), (0.5, 1.5, 0.3))
    best = min(map(least, starts), key=lambda s: float(s.fun))
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
    factor = math.exp(float(stats.t.ppf(0.95, len(POINTS) - len(vars(accelerator)) - _CHOSEN)) * rms)
    return Fit(accelerator, points, factor, _beside({p.name: p.ms for p in POINTS}))


def _beside(known: Mapping[str, float]) -> float:
    """Time of a picture outside of its components, in ms: the median of the published pictures."""
    return statistics.median(ms - _STEPS * known[name] - known[DECODER] for name, ms in PICTURE_TIMES.items())
