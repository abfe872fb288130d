"""Where onnxruntime's attention operator is quicker than two products and a softmax, by measured shapes.

`attention_times.json` holds the times and where they are from; `python -m benchmarks.attention` makes it anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ATTENTION_TIMES = Path(__file__).with_name("attention_times.json")
# Up to this share of the time of the products alone. In a layer the operator gains more: keys stay as they are, and the caches
# are left to others (`benchmarks.attention_network`: a layer whose windows are at 1.04 gets quicker by 6 % with it).
WINS = 1.05


@dataclass(frozen=True)
class AttentionShape:
    """q (heads, rows, dim), k and v (heads, keys, dim)."""

    heads: int
    rows: int
    keys: int
    dim: int

    def distance(self, other: AttentionShape) -> float:
        """How far apart two shapes are: the root of the sum of squares of log2 of the sizes' ratios.

        >>> AttentionShape(8, 64, 64, 16).distance(AttentionShape(8, 16, 64, 16))
        2.0
        """
        return math.hypot(*(math.log2(a / b) for a, b in zip(self.sizes, other.sizes, strict=True)))

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """All four."""
        return self.heads, self.rows, self.keys, self.dim


@dataclass(frozen=True)
class AttentionTime:
    """Milliseconds of one shape in both forms, fp32."""

    shape: AttentionShape
    spelled_ms: float
    operator_ms: float

    @property
    def ratio(self) -> float:
        """Of the operator to the products."""
        return self.operator_ms / self.spelled_ms


@cache
def stored_times() -> Sequence[AttentionTime]:
    """What is measured and comes with this package."""
    rows = json.loads(ATTENTION_TIMES.read_text())["times"]
    return tuple(AttentionTime(AttentionShape(*row["shape"]), row["spelled_ms"], row["operator_ms"]) for row in rows)


def expected_ratio(shape: AttentionShape) -> float:
    """Time of the operator to that of the products: the geometric mean of all measured ratios, weighted by 2^-distance^2.

    Neighbours on the measured grid are two apart, so that noise of one measurement decides nothing alone.
    """
    weights = [2.0 ** -(time.shape.distance(shape) ** 2) for time in stored_times()]
    total = sum(weight * math.log(time.ratio) for weight, time in zip(weights, stored_times(), strict=True))
    return math.exp(total / sum(weights))


def operator_wins(shape: AttentionShape) -> bool:
    """Whether the operator is expected to be quicker."""
    return expected_ratio(shape) <= WINS
