"""The iPhone 16 Pro Max as a machine, fitted to published times.

Three free parameters for five points: a MAC rate, the bandwidth of streams between operations (partly through on-chip memory),
and the bandwidth of scores that spill. MAC rate and spill bandwidth are bounded by the published peaks in the profile. The size
of on-chip memory is fixed beforehand (`published.ON_CHIP`), and so is the rate of weights and of operands that are read again:
the published bandwidth. The fit minimises squared log errors. The interval is exp(+- t * rms) of the leave-one-out log errors,
Student's t for a 90 % interval with points - parameters degrees of freedom. That the terms were chosen on the same points is
not allowed for.

Two published points are set apart (`Point.apart`), because the same rates do not meet them: all rates that come close to
`full` make the others worse, and each sum of `snapgen`'s load that has a fitted rate is below that of `tiny`, which takes about
as long. They are predicted by the fit to the others, and their errors widen the interval of networks that are like them: those
in whose traffic what sets such a point apart (`APART_SHARES`) has over twice the share that it has in any fitted point's.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from snapgen_deploy.families.names import DECODER
from snapgen_deploy.latency.estimate.cost_ops import OP_KINDS
from snapgen_deploy.latency.estimate.machine import Machine, Rate
from snapgen_deploy.latency.estimate.published import ON_CHIP, PICTURE_TIMES, POINTS, Apart, Load, Point

PEAK_MACS = 17.5e12 / 2  # per second, fp16: half of 35 TOPS, two operations per MAC (profile iphone16pm)
PEAK_BANDWIDTH = 60e9  # bytes per second (profile iphone16pm)
STREAM_LIMIT = 10 * PEAK_BANDWIDTH  # on-chip memory is faster than main memory; how much is not published
_TIE = 1e-4  # weight of the squared logarithm of the MAC rate's share of its peak, beside squared log errors
_STEPS = 4  # steps of the published pictures
# What sets points apart, as a share of the traffic: convolutions over maps, and operands that are read again.
APART_SHARES: Mapping[Apart, Callable[[Load], float]] = MappingProxyType(
    {"maps": lambda load: load.maps / load.moved, "again": lambda load: load.again / load.moved}
)
_MARGIN = 2.0  # a share may be this many times the largest of the points that are fitted; our choice
FITTED = tuple(p for p in POINTS if p.apart is None)


@dataclass(frozen=True)
class Accelerator:
    """Fitted rates, per second."""

    macs: float
    stream: float  # bytes of activations
    spill: float  # bytes of attention scores

    def ms(self, load: Load) -> float:
        """Time of a component: that of `machine.Machine` with `overlap`."""
        work = max(load.macs / self.macs, load.moved / self.stream, load.weights / PEAK_BANDWIDTH)
        return 1e3 * (work + load.spilled / self.spill + load.again / PEAK_BANDWIDTH)


@dataclass(frozen=True)
class LeftOut:
    """One published point, and its prediction from the other points."""

    name: str
    published_ms: float
    fitted_ms: float  # with all points that are not set apart
    predicted_ms: float  # without this one
    what: str
    apart: Apart | None

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted_ms / self.published_ms - 1


@dataclass(frozen=True)
class Fit:
    """The accelerator, its leave-one-out errors, and the time of a picture outside of its components."""

    accelerator: Accelerator
    points: tuple[LeftOut, ...]
    factor: float  # the 90 % interval is estimate / factor ... estimate * factor, for networks that are like none set apart
    picture_ms: float

    @property
    def machine(self) -> Machine:
        """The accelerator as a machine."""
        a = self.accelerator
        rates: Mapping[str, Rate] = {kind: Rate(mac=1 / a.macs, read=1 / a.stream) for kind in OP_KINDS if kind != "view"}
        seconds = {"picture": self.picture_ms / 1e3, "spill": 1 / a.spill, "memory": 1 / PEAK_BANDWIDTH}
        return Machine(rates, on_chip=ON_CHIP, overlap=True, **seconds)

    @property
    def apart(self) -> tuple[LeftOut, ...]:
        """The points that the rates are not fitted to."""
        return tuple(p for p in self.points if p.apart is not None)

    def like(self, load: Load) -> LeftOut | None:
        """The point set apart that a network is like; None if the interval of the fit holds for it.

        Convolutions are compared with those of the fitted networks that attend as well, or that do not attend either.
        """
        near = [p.load for p in FITTED]
        seen: Mapping[Apart, list[Load]] = {"maps": [n for n in near if bool(n.attended) == bool(load.attended)], "again": near}
        for apart, share in APART_SHARES.items():
            if load.moved and share(load) > _MARGIN * max(map(share, seen[apart])):
                return next(p for p in self.apart if p.apart == apart)
        return None


def fit_accelerator(points: Sequence[Point]) -> Accelerator:
    """Fit the rates: the smallest sum of squared log errors within the bounds.

    Points whose streams take longer than their arithmetic tell only the least MAC rate. Of those that fit as well, the one
    nearest to the published peak is taken. max() has corners. Therefore there is more than one start, and no use of gradients.
    """
    from scipy.optimize import minimize

    scale = np.array([PEAK_MACS, PEAK_BANDWIDTH, PEAK_BANDWIDTH])
    bounds = ((0.05, 1.0), (1.0, STREAM_LIMIT / PEAK_BANDWIDTH), (0.05, 1.0))

    def loss(shares: np.ndarray) -> float:
        accelerator = Accelerator(*(shares * scale))
        return sum(math.log(accelerator.ms(p.load) / p.ms) ** 2 for p in points) + _TIE * math.log(shares[0]) ** 2

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

    accelerator = fit_accelerator(FITTED)

    def left_out(point: Point) -> LeftOut:
        others = fit_accelerator([q for q in FITTED if q is not point]) if point.apart is None else accelerator
        return LeftOut(point.name, point.ms, accelerator.ms(point.load), others.ms(point.load), point.what, point.apart)

    points = tuple(map(left_out, POINTS))
    rms = math.sqrt(sum(math.log1p(p.error) ** 2 for p in points if p.apart is None) / len(FITTED))
    factor = math.exp(float(stats.t.ppf(0.95, len(FITTED) - len(vars(accelerator)))) * rms)
    return Fit(accelerator, points, factor, _beside({p.name: p.ms for p in POINTS}))


def _beside(known: Mapping[str, float]) -> float:
    """Time of a picture outside of its components, in ms: the median of the published pictures."""
    return statistics.median(ms - _STEPS * known[name] - known[DECODER] for name, ms in PICTURE_TIMES.items())
