"""Estimates over widths, picture sizes and numbers of steps, as rows and as one plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.registry import family_of
from snapgen_deploy.latency.estimate.estimate import Estimate, estimate_picture
from snapgen_deploy.latency.estimate.estimate_basis import EstimatedDevice
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.plan.sizes import latent_of
from snapgen_deploy.system.progress import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK = ("#1f5fbf", "#c0392b", "#2e7d32", "#8e44ad", "#b7791f")
MARKS = "osD^v"  # so that lines can be distinguished without colour
SHARES = (0.5, 0.75, 1.0)  # shares of the picture's sides
_STEPS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Sweep:
    """Estimates, grouped as in the plot; every group contains the requested point."""

    widths: tuple[Estimate, ...]
    resolutions: tuple[Estimate, ...]
    steps: tuple[Estimate, ...]


def sweep_estimates(
    config: ModelConfig,
    device: EstimatedDevice,
    target: str,
    widths: Sequence[str],
    *,
    resolution: tuple[int, int],
    steps: int,
    progress: Progress,
) -> Sweep:
    """Make all estimates. Picture sizes without a basis are left out; a measurement is a basis for one size only.

    Raises:
        BadInput: if the model has no such width or picture size, or the target is not known.
    """
    grown: list[Estimate] = []
    for size in _sizes(config, resolution):
        with progress(f"estimating {size[0]}x{size[1]}"):
            found = [estimate_picture(config, w, size, device, target, steps=steps) for w in widths]
        grown += [e for e in found if isinstance(e, Estimate)]
    asked = tuple(e for e in grown if e.resolution == resolution)
    counts = sorted({*_STEPS, steps})
    counted = (estimate_picture(config, e.width, resolution, device, target, steps=n) for e in asked for n in counts)
    return Sweep(asked, tuple(grown), tuple(e for e in counted if isinstance(e, Estimate)))


def _sizes(config: ModelConfig, resolution: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """The requested picture size, and smaller ones of about the same shape that the model admits."""
    latent_of(config, resolution)
    family, factor = family_of(config), config.student.latent_factor
    unit = family.size_rule(config).unit
    found = {resolution}
    for share in SHARES:
        size = (unit * round(resolution[0] * share / unit), unit * round(resolution[1] * share / unit))
        if not family.size_problems(config, (size[0] // factor, size[1] // factor)):
            found.add(size)
    return tuple(sorted(found))


def plot_sweep(found: Sweep, device: EstimatedDevice, path: Path) -> None:
    """Draw latency over width, picture size and steps, with intervals. The same sweep always gives the same bytes.

    Raises:
        BadInput: if the file is not a .png, or cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    if path.suffix.lower() != ".png":
        raise BadInput(f"plot: got {path.name}, expected a name that ends with .png")
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        axes = figure.subplots(1, 3)
        _bars(axes[0], found.widths)
        _lines(axes[1], found.resolutions, "picture, megapixels", lambda e: e.resolution[0] * e.resolution[1] / 1e6)
        _lines(axes[2], found.steps, "steps", lambda e: float(e.steps))
        first = found.widths[0]
        size = f"{first.resolution[0]}x{first.resolution[1]}"
        title = f"{device.name}, {first.target}: one picture ({first.basis}); {size}, {first.steps} steps where not swept"
        figure.suptitle(title, parse_math=False)
        try:
            figure.savefig(path, dpi=150, metadata={"Software": None})
        except OSError as error:
            raise BadInput(f"plot: {path} cannot be written ({error.strerror}); choose another place") from None


def _bars(axes: Axes, estimates: Sequence[Estimate]) -> None:
    values, ends = [e.ms for e in estimates], [[e.ms - e.low for e in estimates], [e.high - e.ms for e in estimates]]
    colours = [_INK[i % len(_INK)] for i in range(len(estimates))]
    axes.bar([e.width for e in estimates], values, yerr=ends, color=colours, alpha=0.75, capsize=4, width=0.6)
    axes.set_xlabel("width")
    axes.set_ylabel("ms")
    _bare(axes)


def _lines(axes: Axes, estimates: Sequence[Estimate], label: str, place: Callable[[Estimate], float]) -> None:
    for i, width in enumerate(dict.fromkeys(e.width for e in estimates)):
        ours = sorted((e for e in estimates if e.width == width), key=place)
        x, colour = [place(e) for e in ours], _INK[i % len(_INK)]
        axes.plot(x, [e.ms for e in ours], MARKS[i % len(MARKS)] + "-", color=colour, markersize=4, label=width)
        axes.fill_between(x, [e.low for e in ours], [e.high for e in ours], color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel(label)
    axes.legend(fontsize=8, frameon=False)
    _bare(axes)


def _bare(axes: Axes) -> None:
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
