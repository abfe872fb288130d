"""Palettes: a weight as an index into a short table of values, found by k-means in one dimension.

In one dimension clusters are intervals, so a palette is a sorted table, and a value belongs to the nearest entry. Fitting works
on the sorted values, or on a fine histogram of a large tensor, starts near the optimum and follows Lloyd's iterations; it draws
nothing at random. Entries are numbers that fp16 holds, so that a file with an fp16 table holds exactly the weights that were
tuned and checked.
"""

from __future__ import annotations

import numpy as np

HISTOGRAM = 1 << 16  # bins for a tensor of more values than this: 1/65536 of the range is far below a cluster's width
CANDIDATES = 512  # cells of the coarse problem that is solved exactly
EXACT_CLUSTERS = 32  # above it, cells would hardly be finer than clusters: the start then comes from the density alone
STARTS = (0.5, 1, 2, 4)  # cells per cluster, if there are many clusters
_ITERATIONS = 300


def fit_palette(weight: np.ndarray, clusters: int) -> np.ndarray:
    """The palette of a tensor: at most `clusters` sorted distinct float32 values that fp16 can represent.

    >>> fit_palette(np.array([0.0, 0.1, 0.9, 1.0]), 4).size
    4

    Raises:
        ValueError: if `clusters` is below 1, there are no weights, or they are not finite.
    """
    values = np.ascontiguousarray(weight, dtype=np.float32).reshape(-1)
    if clusters < 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"got {clusters} clusters for {values.size} weights, expected 1 or more and finite weights")
    points, counts = _points(values)
    centres = points if len(points) <= clusters else _centres(points, counts, clusters)
    limit = np.finfo(np.float16).max
    # unique in float32: NumPy's sort of float16 is wrong on some processors (see export/coreml/palettes.py)
    return np.unique(np.clip(centres, -limit, limit).astype(np.float16).astype(np.float32))


def encode(weight: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Index of the nearest palette entry for every weight, in the weight's shape; uint8."""
    between = ((palette[1:].astype(np.float64) + palette[:-1]) / 2).astype(np.float32)
    return np.searchsorted(between, weight.astype(np.float32, copy=False)).astype(np.uint8)


def snap(weight: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The weights, each replaced by its nearest palette entry; float32."""
    snapped: np.ndarray = palette.astype(np.float32)[encode(weight, palette)]
    return snapped


def _points(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct places (n,) and how many weights lie there (n,), in double precision."""
    if values.size <= HISTOGRAM:
        places, counts = np.unique(values, return_counts=True)
        return places.astype(np.float64), counts.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.array([low]), np.array([float(values.size)])
    cells = np.minimum((values - low) * np.float32(HISTOGRAM / (high - low)), HISTOGRAM - 1).astype(np.int32)
    counts = np.bincount(cells, minlength=HISTOGRAM).astype(np.float64)
    sums = np.bincount(cells, weights=values, minlength=HISTOGRAM)
    filled = counts > 0
    return sums[filled] / counts[filled], counts[filled]


def _centres(points: np.ndarray, counts: np.ndarray, clusters: int) -> np.ndarray:
    """Sorted centres: from the optimum over coarse cells where clusters are few, else the best of some starts.

    The best density of many clusters is the cube root of the values' density (Panter and Dite, 1951). No cell width is best for
    estimating the density of few values, so several are tried.
    """
    if clusters <= EXACT_CLUSTERS:
        return _lloyd(points, counts, _optimal(*_coarse(points, counts, CANDIDATES), clusters))
    found = []
    for fineness in STARTS:
        cells, mass = _coarse(points, counts, int(fineness * clusters), even=True)
        shares = np.cbrt(mass)
        heights = np.cumsum(shares) - shares / 2
        start = np.interp((np.arange(clusters) + 0.5) / clusters * shares.sum(), heights, cells)
        found.append(_lloyd(points, counts, np.unique(start)))
    return min(found, key=lambda centres: _error(points, counts, centres))


def _error(points: np.ndarray, counts: np.ndarray, centres: np.ndarray) -> float:
    """Sum of squared distances to the nearest centre."""
    nearest = centres[np.searchsorted((centres[1:] + centres[:-1]) / 2, points)]
    return float((counts * (points - nearest) ** 2).sum())


def _coarse(points: np.ndarray, counts: np.ndarray, cells: int, *, even: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours merged into at most `cells`: of even width, or narrower where there is more (by the cube root again)."""
    if len(points) <= cells:
        return points, counts
    if even:
        where = (points - points[0]) * (cells / (points[-1] - points[0]))
    else:
        wide, mass = _coarse(points, counts, 2 * cells, even=True)
        heights = np.cumsum(np.cbrt(mass))
        where = np.interp(points, wide, heights) * (cells / heights[-1])
    cell = np.minimum(where, cells - 1).astype(np.int64)
    merged = np.bincount(cell, counts, cells)
    sums = np.bincount(cell, counts * points, cells)
    filled = merged > 0
    return sums[filled] / merged[filled], merged[filled]


def _optimal(points: np.ndarray, counts: np.ndarray, clusters: int) -> np.ndarray:
    """Centres of the best partition of few sorted points into intervals, by dynamic programming."""
    n = len(points)
    clusters = min(clusters, n)
    weight, first, second = (np.concatenate([[0.0], np.cumsum(counts * points**p)]) for p in (0, 1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):  # [start, end): empty intervals are ruled out below
        sums = first[None, :] - first[:, None]
        cost = second[None, :] - second[:, None] - sums**2 / (weight[None, :] - weight[:, None])
    cost = np.where(np.arange(n + 1)[None, :] > np.arange(n + 1)[:, None], np.maximum(cost, 0.0), np.inf)
    best, cuts = cost[0].copy(), []
    for _ in range(clusters - 1):
        whole = best[:, None] + cost  # points up to `start` in one interval fewer, then [start, end)
        cuts.append(whole.argmin(0))
        best = whole.min(0)
    ends = [n]
    for cut in reversed(cuts):
        ends.append(int(cut[ends[-1]]))
    bounds = np.array([0, *ends[::-1]])
    centres: np.ndarray = np.diff(first[bounds]) / np.diff(weight[bounds])
    return centres


def _lloyd(points: np.ndarray, counts: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Centres moved to the means of their intervals until they stay; one that nothing is near to is dropped."""
    weight, first = (np.concatenate([[0.0], np.cumsum(counts * points**p)]) for p in (0, 1))
    for _ in range(_ITERATIONS):
        bounds = np.concatenate([[0], np.searchsorted(points, (centres[1:] + centres[:-1]) / 2), [len(points)]])
        mass = np.diff(weight[bounds])
        moved = np.diff(first[bounds])[mass > 0] / mass[mass > 0]
        if len(moved) == len(centres) and np.array_equal(moved, centres):
            break
        centres = moved
    return centres
