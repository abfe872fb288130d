"""Plots of a measurement: distribution of every component, samples over time, and medians per minute of a sustained run."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.names import in_order as components_in_order
from snapgen_deploy.families.names import timing_title
from snapgen_deploy.latency.results import QUERY, Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, SOFT, BAD, MARK = "#1f5fbf", "#9db9e3", "#c0392b", "#222222"  # blue and red marks also differ in shape
SUFFIXES = (".png", ".svg", ".pdf")
# Leaves out what changes from run to run: date, and version of the library.
_METADATA: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}


@dataclass(frozen=True)
class _Point:
    """One sample and its time within the measurement."""

    seconds: float  # since the first round
    ms: float
    round: int
    valid: bool


def timeline(measurement: Measurement, name: str = QUERY) -> tuple[_Point, ...]:
    """The samples of one name in their order. Rounds start at their `started_s`, or one after the other if that is missing."""
    starts = [r.state.get("started_s") for r in measurement.rounds]
    points: list[_Point] = []
    clock = 0.0
    for i, (r, start) in enumerate(zip(measurement.rounds, starts, strict=True)):
        clock = float(start) if start is not None and None not in starts else clock
        for ms in r.samples.get(name, ()):
            points.append(_Point(clock, ms, i, r.valid))
            clock += ms / 1000
    return tuple(points)


def minute_medians(measurement: Measurement, name: str = QUERY) -> tuple[tuple[int, float], ...]:
    """(minute, median in ms) of the valid samples, for every minute with samples."""
    minutes: dict[int, list[float]] = {}
    for p in timeline(measurement, name):
        if p.valid:
            minutes.setdefault(int(p.seconds // 60), []).append(p.ms)
    return tuple((minute, statistics.median(values)) for minute, values in sorted(minutes.items()))


def plot_measurement(measurement: Measurement, path: Path) -> None:
    """Draw a measurement to a .png, .svg or .pdf file; the same measurement always gives the same bytes.

    Raises:
        BadInput: if the file has another suffix or cannot be written, or the measurement has no valid sample.
    """
    import matplotlib
    from matplotlib.figure import Figure

    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise BadInput(f"plot: got {path.name}, expected a name that ends with {', '.join(SUFFIXES)}")
    names = statistics_in_order(n for n in measurement.names if measurement.samples(n))
    if not names:
        raise BadInput(f"the measurement of {measurement.bundle} has no valid sample to plot; measure again")
    sustained = measurement.mode == "sustained"
    # A figure without pyplot draws with Agg and leaves the process's backend alone.
    with matplotlib.rc_context({"svg.hashsalt": "snapgen-deploy", "font.size": 9}):
        figure = Figure(figsize=(8, 2.6 * (2 + sustained)), layout="constrained")
        grid = figure.add_gridspec(2 + sustained, len(names))
        for column, name in enumerate(names):
            _distribution(figure.add_subplot(grid[0, column]), measurement, name)
        _against_time(figure.add_subplot(grid[1, :]), measurement, names[0])
        if sustained:
            _minutes(figure.add_subplot(grid[2, :]), measurement, names[0])
        key = measurement.key
        figure.suptitle(f"{measurement.bundle} ({measurement.width})  ·  {key.backend}  ·  {key.soc}", parse_math=False)
        try:
            figure.savefig(path, dpi=150, metadata=_METADATA[suffix])
        except OSError as error:
            raise BadInput(f"plot: {path} cannot be written ({error.strerror}); choose another place") from None


def label(name: str) -> str:
    """A timing's name as words."""
    return "whole picture" if name == QUERY else timing_title(name)


def statistics_in_order(names: Iterable[str]) -> list[str]:
    """The whole picture first, then the components in the order in which a picture uses them."""
    return sorted(components_in_order(names), key=lambda n: n != QUERY)


def _distribution(axes: Axes, measurement: Measurement, name: str) -> None:
    values, summary = measurement.samples(name), measurement.summary(name)
    axes.hist(values, bins=min(40, max(5, len(values) // 4)), color=SOFT, edgecolor=_INK, linewidth=0.4)
    axes.axvline(summary["p50"], color=MARK, linewidth=1.2)
    figures = f"p50 {summary['p50']:.4g}"
    if summary["p90_bound"] is not None:
        axes.axvline(summary["p90_bound"], color=MARK, linewidth=1.2, linestyle=":")
        figures += f", p90 ≤ {summary['p90_bound']:.4g}"
    axes.set_title(f"{label(name)}\n{figures}", fontsize=9)
    axes.set_xlabel("ms")
    _bare(axes)


def _against_time(axes: Axes, measurement: Measurement, name: str) -> None:
    points = timeline(measurement, name)
    for valid, colour, marker, legend in ((True, _INK, ".", "valid round"), (False, BAD, "x", "discarded round")):
        chosen = [p for p in points if p.valid is valid]
        if chosen:
            axes.plot(
                [p.seconds for p in chosen],
                [p.ms for p in chosen],
                marker,
                color=colour,
                markersize=3.5,
                label=legend,
                alpha=0.7,
            )
    for i in range(len(measurement.rounds)):
        ours = [p for p in points if p.round == i]
        if ours:
            middle = statistics.median(p.ms for p in ours)
            axes.hlines(middle, ours[0].seconds, ours[-1].seconds + ours[-1].ms / 1000, color=MARK, linewidth=1.4)
            axes.axvline(ours[0].seconds, color="#cccccc", linewidth=0.6, zorder=0)
    axes.set_title(f"{label(name)}, sample by sample (bar: median of the round)")
    axes.set_xlabel("seconds")
    axes.set_ylabel("ms")
    axes.legend(fontsize=7, frameon=False, loc="upper right")
    _bare(axes)


def _minutes(axes: Axes, measurement: Measurement, name: str) -> None:
    medians = minute_medians(measurement, name)
    axes.plot([m for m, _ in medians], [ms for _, ms in medians], "o-", color=_INK, markersize=4)
    axes.set_title(f"{label(name)}, median of every minute")
    axes.set_xlabel("minute")
    axes.set_ylabel("ms")
    axes.set_ylim(0, 1.15 * max(ms for _, ms in medians))  # from 0, so that noise does not look like throttling
    _bare(axes)


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
