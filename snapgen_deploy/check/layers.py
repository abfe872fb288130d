"""Finds the first operation of a saved graph with a wrong output, by comparison with the same graph in single precision.

A probe lists the operations and returns the outputs of some of them, as the saved file's runtime computes them and in single
precision, both with the file's own weights. `first_wrong` bisects, so that few outputs are held and compared at a time.

A runtime may not fuse operations if an output between them is requested. So a wrong layer may be missed, but a correct one is
never reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from snapgen_deploy.export.probe import GraphLayer, Probe

AT_ONCE = 24  # outputs per round
SMALL = 0.01  # errors are not divided by less than this share of the root mean square of an operation's inputs


@dataclass(frozen=True)
class FoundLayers:
    """The result of a comparison: the first wrong layer and the measured errors."""

    wrong: GraphLayer | None  # None: none of the compared layers is wrong
    errors: Mapping[str, float]  # output -> relative error, in the order of the file
    looked_at: int  # layers that were compared
    layers: int  # layers of the graph
    warnings: tuple[str, ...] = ()

    @property
    def worst(self) -> float:
        """The largest measured error; NaN if nothing was compared."""
        return float(np.max(list(self.errors.values()))) if self.errors else math.nan

    def as_dict(self, limit: float) -> dict[str, Any]:
        """For `--json`, with the limit for errors; NaN becomes null."""
        wrong = self.wrong
        return {
            "verdict": "passed" if wrong is None else "failed",
            "limit": limit,
            "first_wrong": None if wrong is None else {"name": wrong.name, "op": wrong.op, "output": wrong.output},
            "warnings": list(self.warnings),
            "looked_at": self.looked_at,
            "layers": self.layers,
            "errors": {name: float(f"{error:.3g}") if error == error else None for name, error in self.errors.items()},
        }


def first_wrong(probe: Probe, limit: float) -> FoundLayers:
    """Bisect over the layers for the first whose error exceeds `limit` while those of its inputs do not; NaN exceeds."""
    layers, errors = probe.layers, dict[str, float]()
    place = {layer.output: i for i, layer in enumerate(layers)}

    def measure(indices: Sequence[int]) -> None:
        new = [i for i in dict.fromkeys(indices) if layers[i].output not in errors]
        for start in range(0, len(new), AT_ONCE):
            some = [layers[i] for i in new[start : start + AT_ONCE]]
            errors.update(_errors(probe, some))

    def bad(index: int) -> bool:
        return not errors[layers[index].output] <= limit

    low, high = -1, len(layers)  # all up to `low` are assumed correct; `high` is wrong, or the end
    while high - low > 1:
        inner = _spread(low, high)
        measure(inner)
        wrong = next((i for i in inner if bad(i)), None)
        low = max((i for i in inner if wrong is None or i < wrong), default=low)
        if wrong is None and high == len(layers):
            break
        high = high if wrong is None else wrong
    while high < len(layers):  # look for a wrong value that the coarse rounds skipped
        before = [place[name] for name in layers[high].inputs if name in place]
        measure(before)
        earlier = [i for i in before if bad(i)]
        if not earlier:
            break
        high = min(earlier)
    ordered = {layer.output: errors[layer.output] for layer in layers if layer.output in errors}
    first = layers[high] if high < len(layers) else None
    return FoundLayers(first, ordered, len(ordered), len(layers), tuple(probe.warnings))


def _spread(low: int, high: int) -> list[int]:
    """At most AT_ONCE evenly spaced indices between both, always with the last one."""
    count = min(AT_ONCE, high - low - 1)
    return sorted({low + round((high - low - 1) * (i + 1) / count) for i in range(count)})


def _errors(probe: Probe, layers: Sequence[GraphLayer]) -> dict[str, float]:
    """RMS of the difference, divided by the RMS of the expected output or by `SMALL` times that of an input, if greater."""
    outputs = [layer.output for layer in layers]
    exact = probe.exact(list(dict.fromkeys([*outputs, *(name for layer in layers for name in layer.inputs)])))
    saved = probe.saved(outputs)
    found = {}
    for layer in layers:
        got, expected = saved[layer.output], exact[layer.output]
        scale = max([_rms(expected), *(SMALL * _rms(exact[name]) for name in layer.inputs)])
        same = got.shape == expected.shape
        found[layer.output] = _distance(got, expected) / max(scale, 1e-30) if same else math.nan
    return found


def _distance(got: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference. Equal infinities, such as those of a mask, differ by 0; NaN gives NaN."""
    with np.errstate(invalid="ignore"):
        difference = np.where(got == expected, 0.0, got.astype(np.float64) - expected)
    return float(np.sqrt(np.mean(np.square(difference)))) if difference.size else 0.0


def _rms(x: np.ndarray) -> float:
    """Root mean square of the finite values."""
    finite = x[np.isfinite(x)]
    return float(np.sqrt(np.mean(np.square(finite, dtype=np.float64)))) if finite.size else 0.0
