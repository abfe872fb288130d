"""Geometry of the inline charts: numbers and labels only. The templates draw them and escape the labels.

Charts are WIDTH units wide and shown at about that many pixels on any screen, so that their text stays legible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from snapgen_deploy.report.views import ComparisonView, MeasuredView
from snapgen_deploy.system.quantiles import quantile

WIDTH = 340
_SIDE = 8  # left and right of the plot
RIDGE, _CAPTION, AXIS = 40, 23, 34  # heights: a distribution, the line of text above it, the axis at the bottom
BINS = 44
_SHOWN = 0.99  # share of the samples that the axis covers; the page says how many are beyond it


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Ridge:
    """The distribution of one measurement."""

    label: str
    caption: str
    path: str  # SVG path data of the filled histogram
    top: float  # y of the caption's top
    base: float  # y of the zero line
    p50: float  # x
    bound: float | None  # x of the bound of p90, None if there is none or it is beyond the axis
    slot: int  # index of the colour


@dataclass(frozen=True)
class Distributions:
    """The distributions of one component, on a common axis."""

    name: str
    title: str
    height: int
    axis: float  # y
    ridges: tuple[Ridge, ...]
    ticks: tuple[Tick, ...]
    beyond: int  # number of samples beyond the axis
    largest: float  # ms


@dataclass(frozen=True)
class Dot:
    """The change of a metric in one comparison, with its interval."""

    x: float
    y: float
    low: float
    high: float
    verdict: str
    text: str


@dataclass(frozen=True)
class History:
    """A metric over all comparisons, oldest at the left."""

    metric: str
    target: str
    height: int
    dots: tuple[Dot, ...]
    ticks: tuple[Tick, ...]
    zero: float  # y
    limit: float | None  # y


@dataclass(frozen=True)
class Segment:
    """A part of a stacked bar."""

    label: str
    count: int
    percent: float
    slot: int  # index of the colour


def distributions(measured: Sequence[MeasuredView], name: str, title: str) -> Distributions | None:
    """The chart of one component's measurements; None if it was never timed."""
    rows = [(i, v, values) for i, v in enumerate(measured) if (values := v.measurement.samples(name))]
    if not rows:
        return None
    low = min(min(values) for _, _, values in rows)
    high = max(quantile(values, _SHOWN) for _, _, values in rows)
    if not high > low:  # all samples are equal, but an axis needs some width
        low, high = low * 0.99, high * 1.01 + 1e-6
    span = (low - 0.03 * (high - low), high + 0.03 * (high - low))
    ridges = tuple(_ridge(k, i, view, values, name, span) for k, (i, view, values) in enumerate(rows))
    axis = len(rows) * (RIDGE + _CAPTION)
    return Distributions(
        name=name,
        title=title,
        height=axis + AXIS,
        axis=axis,
        ridges=ridges,
        ticks=tuple(Tick(_x(t, span), f"{t:g}") for t in nice_ticks(*span, 5)),
        beyond=sum(v > span[1] for _, _, values in rows for v in values),
        largest=max(max(values) for _, _, values in rows),
    )


def _ridge(row: int, slot: int, view: MeasuredView, values: Sequence[float], name: str, span: tuple[float, float]) -> Ridge:
    summary = view.measurement.summary(name)
    counts = [0] * BINS
    for v in values:
        if v <= span[1]:
            counts[min(BINS - 1, int(BINS * (v - span[0]) / (span[1] - span[0])))] += 1
    top = row * (RIDGE + _CAPTION)
    base, tallest = top + RIDGE + _CAPTION, max(counts)
    step = (WIDTH - 2 * _SIDE) / BINS
    steps = []
    for i, count in enumerate(counts):
        y = base - (RIDGE - 6) * count / tallest
        steps.append(f"V{_round(y)}H{_round(_SIDE + (i + 1) * step)}")
    bound = summary["p90_bound"]
    key = view.measurement.key
    return Ridge(
        label=f"{key.backend} · {view.measurement.width} · {key.soc}",
        caption=f"{summary['p50']:.4g} ms",
        path=f"M{_SIDE} {base}{''.join(steps)}V{base}Z",
        top=top,
        base=base,
        p50=_x(summary["p50"], span),
        bound=_x(bound, span) if bound is not None and bound <= span[1] else None,
        slot=slot % 4,
    )


def segments_of(parts: Sequence[tuple[str, int]], most: int = 5) -> tuple[Segment, ...]:
    """Shares of a whole. Beyond the first `most`, parts are summed up as "other kinds".

    >>> [(s.label, s.percent) for s in segments_of([("conv", 3), ("add", 1)])]
    [('conv', 75.0), ('add', 25.0)]
    """
    total = sum(n for _, n in parts)
    if total <= 0:
        return ()
    shown = list(parts[:most])
    rest = sum(n for _, n in parts[most:])
    if rest:
        shown.append((f"{len(parts) - most} other kinds", rest))
    return tuple(Segment(label, n, _round(100 * n / total, 3), i) for i, (label, n) in enumerate(shown))


def histories(comparisons: Sequence[ComparisonView]) -> tuple[History, ...]:
    """One chart for every metric and target with at least two comparisons."""
    found: dict[tuple[str, str], list[tuple[int, ComparisonView]]] = {}
    for i, c in enumerate(comparisons):
        for m in c.metrics:
            if m.change is not None:
                found.setdefault((m.name, c.target), []).append((i, c))
    return tuple(_history(*key, rows) for key, rows in found.items() if len(rows) > 1)


def _history(metric: str, target: str, rows: Sequence[tuple[int, ComparisonView]]) -> History:
    height, left, top, bottom = 168, 52, 12, 140
    judged = [(c, m) for _, c in rows for m in c.metrics if m.name == metric and m.change is not None]
    values = [v for _, m in judged for v in (m.change, m.low, m.high, m.limit) if v is not None]
    low, high = min(0.0, *values), max(0.0, *values)
    reach = (high - low) or 0.01
    low, high = low - 0.08 * reach, high + 0.08 * reach

    def y(value: float) -> float:
        return _round(bottom - (bottom - top) * (value - low) / (high - low))

    gap = (WIDTH - left - 2 * _SIDE) / len(judged)
    dots = []
    for i, (c, m) in enumerate(judged):
        change = m.change or 0.0
        ends = (change if m.low is None else m.low, change if m.high is None else m.high)
        when = c.created[:10] or f"no. {i + 1}"
        text = f"{when}: {100 * change:+.1f} %, {m.verdict}"
        dots.append(Dot(_round(left + _SIDE + gap * (i + 0.5)), y(change), y(ends[0]), y(ends[1]), m.verdict, text))
    limit = next((m.limit for _, m in reversed(judged) if m.limit is not None), None)
    ticks = tuple(Tick(y(t), f"{100 * t:+.3g} %" if t else "0 %") for t in nice_ticks(low, high, 4))
    return History(metric, target, height, tuple(dots), ticks, y(0), None if limit is None else y(limit))


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from low to high, about as many as `about`.

    >>> nice_ticks(0, 10, 5)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(s for s in (1, 2, 2.5, 5, 10) if s * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round((first + i) * step, digits) + 0.0 for i in range(count)]


def _x(value: float, span: tuple[float, float]) -> float:
    return _round(_SIDE + (WIDTH - 2 * _SIDE) * (value - span[0]) / (span[1] - span[0]))


def _round(value: float, digits: int = 1) -> float:
    """Round to a few digits; -0.0 becomes 0.0."""
    return round(value, digits) + 0.0
