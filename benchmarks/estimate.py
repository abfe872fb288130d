"""`python -m benchmarks.estimate`: how accurate are the host's estimates, on networks that the calibration has not seen?

Students of several widths, head dims, picture sizes, B, r and depths, decoders and text encoders, with random weights, are
exported to ONNX like those of a bundle, and timed in onnxruntime with one thread. The micro-benchmarks are timed in the same
rounds, so that a change of the machine's speed affects both alike; only they are used for the fit. Writes estimate.json,
estimate.md and estimate.png to `benchmarks/results/`. These also show the fit to the published times of the iPhone 16 Pro Max
with its leave-one-out errors; `--published` renews only that, and keeps what was measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.networks import component
from snapgen_deploy.export.base import Component, Role
from snapgen_deploy.latency.environment import canary, environment
from snapgen_deploy.latency.estimate.calibrate import MicroBenchmark, fit_machine, prepare, timed
from snapgen_deploy.latency.estimate.calibrate_graphs import benchmark_graphs
from snapgen_deploy.latency.estimate.estimate_fitted import fitted
from snapgen_deploy.latency.estimate.machine import component_times
from snapgen_deploy.models import DecoderConfig, DiTConfig, ModelConfig, TextEncoderConfig, TextStream

RESULTS = Path(__file__).parent / "results"
TARGET, THREADS, ROUNDS = "onnx:cpu", 1, 11

BASE = DiTConfig(
    latent_channels=4, hidden=128, head_dim=32, depths=(1, 1, 1), blocks=8, text_streams=(TextStream("text", 128, 40),),
    text_width=128, cross_dim=128, widths={"only": 1.0},
)  # fmt: skip
# name -> (student, latent side)
STUDENTS: dict[str, tuple[DiTConfig, int]] = {
    "hidden 128, 16x16": (BASE, 32),
    "hidden 256, 16x16": (replace(BASE, hidden=256), 32),
    "hidden 512, 16x16": (replace(BASE, hidden=512, head_dim=64), 32),
    "hidden 256, 8x8": (replace(BASE, hidden=256), 16),
    "hidden 128, 32x32": (replace(BASE, blocks=16), 64),
    "hidden 256, 32x32": (replace(BASE, hidden=256, blocks=16), 64),
    "hidden 192, 48x48": (replace(BASE, hidden=192, blocks=16), 96),
    "head dim 16": (replace(BASE, head_dim=16), 32),
    "head dim 64, 24x24": (replace(BASE, hidden=256, head_dim=64, blocks=12), 48),
    "B 4": (replace(BASE, hidden=192, blocks=4), 32),
    "B 16, r 2": (replace(BASE, hidden=192, blocks=16, radius=2), 32),
    "r 0": (replace(BASE, hidden=192, radius=0), 32),
    "depth 2 3 2": (replace(BASE, depths=(2, 3, 2)), 32),
    "depth 1 6 1": (replace(BASE, hidden=256, depths=(1, 6, 1)), 32),
}
DECODERS: dict[str, tuple[DecoderConfig, int]] = {
    "decoder 64 32 16 16, 128 px": (DecoderConfig(4, (64, 32, 16, 16), (1, 1, 0, 0)), 16),
    "decoder 128 64 32 16, 256 px": (DecoderConfig(4, (128, 64, 32, 16), (2, 1, 1, 0)), 32),
}
TEXTS = {"text 256 wide, 77 tokens": TextEncoderConfig(vocab=256, length=77, width=256, layers=3, heads=4)}


def main() -> None:
    """Write the results, measured or with `--published` as they were measured before."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--published", action="store_true", help="renew only the fit to published times")
    known = RESULTS / "estimate.json"
    record = json.loads(known.read_text()) if parser.parse_args().published else measured()
    record["iphone16pm"] = iphone()
    RESULTS.mkdir(exist_ok=True)
    known.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    (RESULTS / "estimate.md").write_text(table(record))
    plot(record, RESULTS / "estimate.png")
    print(table(record))


def measured() -> dict[str, Any]:
    """Export, time, fit, compare."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        listed = benchmark_graphs("native")
        micro = [prepare(g.name, g.component(), TARGET, THREADS, Path(folder)) for g in listed]
        tests = [prepare(name, c, TARGET, THREADS, Path(folder)) for name, c in components().items()]
        print(f"{len(micro)} micro-benchmarks and {len(tests)} configurations exported")
        before = canary()
        seconds = timed([r.call for r in (*micro, *tests)], THREADS, ROUNDS)
        after = canary()
    machine, fit_error = fit_machine(
        [MicroBenchmark(g.name, r.ops, s, g.weight) for g, r, s in zip(listed, micro, seconds[: len(micro)], strict=True)]
    )
    rows = []
    for ready, taken in zip(tests, seconds[len(micro) :], strict=True):
        estimate = component_times(machine, ready.ops).seconds
        rows.append(
            {"name": ready.name, "measured_ms": 1e3 * taken, "estimate_ms": 1e3 * estimate, "error": estimate / taken - 1}
        )
    return {
        "environment": environment(), "canary_ms": [before, after], "fit_error": fit_error, "machine": machine.as_dict(),
        "micro_ms": {r.name: 1e3 * s for r, s in zip(micro, seconds, strict=False)}, "configurations": rows,
        "mean_absolute_error": mean_error(rows),
    }  # fmt: skip


def components() -> dict[str, Component]:
    """The networks to estimate."""
    chosen: dict[str, tuple[ModelConfig, int, Role]] = {}
    chosen |= {name: (ModelConfig(config, None, None), side, "student") for name, (config, side) in STUDENTS.items()}
    chosen |= {name: (ModelConfig(BASE, config, None), side, "decoder") for name, (config, side) in DECODERS.items()}
    chosen |= {name: (ModelConfig(BASE, None, config), 32, "text_encoder") for name, config in TEXTS.items()}
    sizes = {name: (side * BASE.latent_factor,) * 2 for name, (_, side, _) in chosen.items()}
    return {name: component(config, "only", sizes[name], TARGET, role) for name, (config, _, role) in chosen.items()}


def mean_error(rows: Sequence[dict[str, Any]]) -> float:
    """Mean absolute relative error."""
    return statistics.fmean(abs(r["error"]) for r in rows)


def iphone() -> dict[str, Any]:
    """The fit to published times, as plain data."""
    found = fitted()
    points = [asdict(p) | {"error": p.error} for p in found.points]
    return {"points": points, "factor": found.factor, "rates": vars(found.accelerator), "beside_ms": found.picture_ms}


def table(record: dict[str, Any]) -> str:
    """Markdown: the host's configurations, then the phone's published points."""
    rows, phone = record["configurations"], record["iphone16pm"]
    lines = ["| configuration | measured ms | estimate ms | error |", "|---|---|---|---|"]
    lines += [f"| {r['name']} | {r['measured_ms']:.2f} | {r['estimate_ms']:.2f} | {100 * r['error']:+.1f} % |" for r in rows]
    lines += [
        "",
        f"Mean absolute error {100 * record['mean_absolute_error']:.1f} % over {len(rows)} configurations "
        f"({100 * record['fit_error']:.1f} % on the micro-benchmarks; canary {record['canary_ms'][0]:.2f} ms before, "
        f"{record['canary_ms'][1]:.2f} ms after).",
        "",
        "| iPhone 16 Pro Max | published ms | fitted ms | without it ms | error without it |",
        "|---|---|---|---|---|",
    ]
    for p in phone["points"]:
        times = f"{p['published_ms']:g} | {p['fitted_ms']:.0f} | {p['predicted_ms']:.0f}"
        lines.append(f"| {p['name']} | {times} | {100 * p['error']:+.0f} % |")
    known = [p for p in phone["points"] if p["apart"] is None]
    apart = [p for p in phone["points"] if p["apart"] is not None]
    longer = " and ".join(f"{p['name']} (up to {p['published_ms'] / p['predicted_ms']:.2f} times longer)" for p in apart)
    lines += [
        "",
        f"90 % interval from the errors without each of the {len(known)} that are fitted: a factor of {phone['factor']:.2f} "
        f"each way. Not fitted, and wider for networks like them: {longer}.",
    ]
    return "\n".join(lines) + "\n"


def plot(record: dict[str, Any], path: Path) -> None:
    """Plot the host's estimates over measurements, and the phone's published times as predicted without each."""
    figure = Figure(figsize=(10.4, 5), layout="constrained")
    host, phone = figure.subplots(1, 2)
    rows, fit = record["configurations"], record["iphone16pm"]
    scatter(host, [(r["measured_ms"], r["estimate_ms"]) for r in rows], 0.85, 1.15, "± 15 %")
    host.set(xlabel="measured, ms", ylabel="estimate, ms")
    host.set_title(f"{len(rows)} networks the calibration has not seen: mean error {100 * mean_error(rows):.1f} %", fontsize=10)
    points, factor = fit["points"], fit["factor"]
    scatter(phone, [(p["published_ms"], p["predicted_ms"]) for p in points], 1 / factor, factor, f"a factor of {factor:.2f}")
    apart = [(p["published_ms"], p["predicted_ms"]) for p in points if p["apart"] is not None]
    phone.plot(*zip(*apart, strict=True), "D", color="#c0392b", markersize=6, label="not fitted: wider for networks like it")
    phone.legend(frameon=False, loc="upper left")
    phone.set(xlabel="published, ms", ylabel="estimate from the other points, ms")
    phone.set_title(f"iPhone 16 Pro Max: {len(points)} published times", fontsize=10)
    for p in points:
        place = p["published_ms"], p["predicted_ms"]
        phone.annotate(p["name"], place, textcoords="offset points", xytext=(6, -9), fontsize=8)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def scatter(axes: Axes, pairs: Sequence[tuple[float, float]], low: float, high: float, band: str) -> None:
    """Plot (known, estimated) times, the line where both are equal, and a band of factors around it."""
    ends = [0.6 * min(known for known, _ in pairs), 1.6 * max(known for known, _ in pairs)]
    axes.plot(ends, ends, color="#222222", linewidth=1, label="equal")
    axes.fill_between(ends, [low * e for e in ends], [high * e for e in ends], color="#9db9e3", alpha=0.5, label=band)
    axes.plot(*zip(*pairs, strict=True), "o", color="#1f5fbf", markersize=5)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
