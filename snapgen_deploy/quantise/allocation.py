"""Which layers get more bits: a knapsack over the bits of all weights, and how good its answer is.

Every layer has two levels, so that a choice is a set of layers that are raised. The layers' numbers of weights have a large
common divisor, and the dynamic programme over multiples of it is exact. If its table would be too large, numbers are rounded up
to a coarser unit: the answer still keeps the budget, and the relaxed problem (a part of a layer may be raised) bounds how far
it is from the best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from snapgen_deploy.errors import BadInput
from snapgen_deploy.plan.mixed import levels_for

LARGEST_TABLE = 1 << 27  # bytes of the dynamic programme's decisions


@dataclass(frozen=True)
class Candidate:
    """One layer: how many weights it has, and its error at each number of bits."""

    name: str
    weights: int
    errors: Mapping[int, float]


@dataclass(frozen=True)
class Allocation:
    """Bits per layer. `average` is over all quantised weights; `error` is the sum of the layers' errors; no choice can have
    an error below `bound`."""

    bits: Mapping[str, int]
    average: float
    error: float
    bound: float


def allocate(layers: Sequence[Candidate], bits: float) -> Allocation:
    """The allocation with the least total error among those whose average over all weights is at most `bits`.

    Ties go to the earlier layers.

    Raises:
        BadInput: if the average is out of range, or an error is not finite.
    """
    low, high = levels_for(bits)
    bad = [c.name for c in layers if not all(math.isfinite(c.errors[level]) for level in (low, high))]
    if bad:
        raise BadInput(f"sensitivity of {bad[0]} is not finite: the calibration inputs or the weights are broken")
    total = sum(c.weights for c in layers)
    # as a decimal, not as a binary fraction: 4.3 means 43/10
    spare = math.floor((Fraction(str(bits)) - low) * total)
    gains = [max(c.errors[low] - c.errors[high], 0.0) for c in layers]
    costs = [(high - low) * c.weights for c in layers]
    raised = _knapsack(gains, costs, spare)
    chosen = {c.name: high if up else low for c, up in zip(layers, raised, strict=True)}
    floor = sum(c.errors[low] for c in layers)
    return Allocation(
        bits=chosen,
        average=sum(chosen[c.name] * c.weights for c in layers) / total if total else 0.0,
        error=sum(c.errors[chosen[c.name]] for c in layers),
        bound=max(floor - relaxed_gain(gains, costs, spare), 0.0),
    )


def relaxed_gain(gains: Sequence[float], costs: Sequence[int], spare: int) -> float:
    """The most that could be gained if a part of an item could be taken: no choice of whole items gains more."""
    found = 0.0
    for index in sorted(range(len(gains)), key=lambda i: -gains[i] / costs[i]):
        found += gains[index] * min(1.0, spare / costs[index])
        spare -= min(spare, costs[index])
    return found


def _knapsack(gains: Sequence[float], costs: Sequence[int], spare: int) -> list[bool]:
    """Which items to take so that costs stay within `spare` and gains sum to the most."""
    unit = math.gcd(*costs) if costs else 1
    if (spare // unit + 1) * len(costs) > LARGEST_TABLE:
        unit = -(-spare * len(costs) // LARGEST_TABLE)
    room = spare // unit
    best = np.zeros(room + 1)
    taken = np.zeros((len(costs), room + 1), bool)
    for row, gain, cost in zip(taken, gains, (-(-c // unit) for c in costs), strict=True):
        if cost <= room and gain > 0:
            with_it = best[: room + 1 - cost] + gain
            row[cost:] = with_it > best[cost:]
            best[cost:] = np.maximum(best[cost:], with_it)
    chosen = [False] * len(costs)
    for index in reversed(range(len(costs))):
        if taken[index, room]:
            chosen[index] = True
            room -= -(-costs[index] // unit)
    return chosen
