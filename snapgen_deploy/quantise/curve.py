"""The loss curve of a tuning, as JSON and as a picture."""

from __future__ import annotations

import json
from pathlib import Path

from snapgen_deploy.quantise.tuning import TunedNetwork
from snapgen_deploy.system.files import write_text


def write_curve(data: Path, picture: Path, tuned: TunedNetwork) -> None:
    """Write losses and held-out errors to `data` (JSON) and draw them to `picture` (PNG); the same run gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    content = {
        "unit": "squared error of the velocity, relative to the fp32 student's mean square",
        "losses": list(tuned.losses),
        "held_out": {"before": tuned.before, "after": tuned.after},
        "helped": tuned.helped,
    }
    write_text(data, json.dumps(content) + "\n", "choose another place")
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    axis.plot(range(1, len(tuned.losses) + 1), tuned.losses, linewidth=0.6, alpha=0.5, label="lesson")
    window = max(1, len(tuned.losses) // 50)
    means = [sum(tuned.losses[i : i + window]) / window for i in range(len(tuned.losses) - window + 1)]
    axis.plot(range(window, len(tuned.losses) + 1), means, linewidth=1.4, label=f"mean of {window}")
    axis.axhline(tuned.before, color="grey", linestyle=":", label=f"held out, before: {tuned.before:.2g}")
    axis.axhline(tuned.after, color="green", linestyle="--", label=f"held out, after: {tuned.after:.2g}")
    axis.set(xlabel="iteration", ylabel="relative squared error", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(picture, dpi=100, metadata={"Software": None})
