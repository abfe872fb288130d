"""How export and step grow with the number of tokens and of blocks, beside what the mathematics says.

    python -m benchmarks.growth [--threads 1]

A student 256 wide, at 256 to 16384 tokens with four blocks, and of 1 to 28 blocks at 1024 tokens, on three targets: seconds and
peak memory of the process that converts, and a step of the saved file where it runs in the vendor's runtime. The exponent is
the slope of logarithms over the upper half of a series. A step's is held to that of its operations: multiply-accumulates plus
numbers that are moved. Writes benchmarks/results/growth.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.networks import feed
from snapgen_deploy.export.base import Component
from snapgen_deploy.export.registry import spec_of, target_of
from snapgen_deploy.families.component import Spelling
from snapgen_deploy.families.registry import components_of, family_of
from snapgen_deploy.latency.environment import environment
from snapgen_deploy.latency.estimate.cost import trace_costs
from snapgen_deploy.latency.estimate.cost_components import Drawn, spelling_of
from snapgen_deploy.models import DecoderConfig, DiTConfig, ModelConfig, TextStream
from snapgen_deploy.system.child import run_in_child

RESULTS = Path(__file__).parent / "results"
TARGETS = ("onnx:cpu", "executorch:xnnpack", "coreml")
TOKENS, BLOCKS = (256, 1024, 4096, 16384), (1, 2, 4, 8, 16, 28)
FOUR, AT = 4, 1024  # blocks while tokens grow, tokens while blocks grow
PATCH, FACTOR = 2, 8
ROUNDS = 3
MOVES = 50  # multiply-accumulates in the time of a number that is moved: the order of magnitude on CPUs
SERIES = {"tokens": [(n, FOUR) for n in TOKENS], "blocks": [(AT, n) for n in BLOCKS]}


def model(blocks: int) -> ModelConfig:
    """A student with half of its blocks in Down (sparse attention) and the rest in Middle (full attention)."""
    down = (blocks + 1) // 2
    student = DiTConfig(
        latent_channels=4, hidden=256, head_dim=32, depths=(down, blocks - down, 0), blocks=8, text_width=64, cross_dim=128,
        text_streams=(TextStream("text", 64, 77),), widths={"only": 1.0},
    )  # fmt: skip
    return ModelConfig(student, DecoderConfig(latent_channels=4), None, name="growth", trained=False)


def student(tokens: int, blocks: int, key: str, precision: str) -> Component:
    """The component that a target exports."""
    config, side = model(blocks), math.isqrt(tokens) * PATCH
    spec, writing = next(s for s in components_of(config) if s.part == "denoise"), spec_of(key).writing
    latent = (4, side, side)
    ports = spec.called(Drawn("only", (side * FACTOR, side * FACTOR), latent))
    torch.manual_seed(0)
    how = Spelling(spec_of(key).layout, writing.ops_at(precision), writing.upsample, family_of(config).form(config, latent[1:]))
    with torch.no_grad():
        module = spec.rewrite(spec.build("only"), latent[1:], how).eval()
        example = tuple(torch.rand(p.shape).to(getattr(torch, p.dtype)) for p in ports.inputs)
    return Component(spec.name, module, ports.inputs, ports.outputs, example, "")


def converted(tokens: int, blocks: int, key: str, folder: Path) -> tuple[float, float, Path]:
    """Seconds of a conversion, the work of a step, and the file."""
    precision = spec_of(key).precisions[0]
    component = student(tokens, blocks, key, precision)
    element = spelling_of(key).element
    work = sum(o.macs + MOVES * (o.read + o.written) / element for o in trace_costs(component, element))
    target, variant = target_of(key)
    start = time.perf_counter()
    path = target.export(component, variant, precision, folder, {}).path
    return time.perf_counter() - start, work, path


def measure(tokens: int, blocks: int, key: str, threads: int) -> dict[str, Any]:
    """One row."""
    with tempfile.TemporaryDirectory() as folder:
        (seconds, work, path), peak = run_in_child(f"{key}, {tokens} tokens", converted, tokens, blocks, key, Path(folder))
        row = {"tokens": tokens, "blocks": blocks, "target": key, "seconds": seconds, "peak_bytes": peak, "work": work}
        if spec_of(key).runtime.numbers_only:  # our executor's time is not the vendor's
            return row
        run = target_of(key)[0].open(path, threads=threads)
        precision = spec_of(key).precisions[0]
        component = student(tokens, blocks, key, precision)
        inputs = feed(component)
        run(inputs)
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            run(inputs)
            times.append(time.perf_counter() - start)
        return row | {"step_seconds": min(times)}


def exponent(rows: Sequence[Mapping[str, Any]], along: str, what: str) -> float:
    """The slope of log(what) over log(along) for the upper half of a series."""
    upper = [r for r in rows if what in r][len(rows) // 2 - 1 :]
    return float(np.polyfit(np.log([r[along] for r in upper]), np.log([r[what] for r in upper]), 1)[0]) if upper else math.nan


def exponents(rows: Sequence[Mapping[str, Any]], along: str) -> dict[str, dict[str, float]]:
    """By target, and by what is measured."""
    return {key: {what: exponent([r for r in rows if r["target"] == key], along, what) for what in COLUMNS} for key in TARGETS}


COLUMNS = {"seconds": "export, time", "peak_bytes": "export, memory", "step_seconds": "step, time", "work": "step, operations"}


def table(found: Mapping[str, Any]) -> str:
    """Both series as Markdown."""
    about = found["environment"]
    lines = [f"{about['processor']}, threads: {found['threads']}, torch {about['torch']}.", ""]
    for along in SERIES:
        lines += [f"## Over {along}", "", "| target | " + " | ".join(f"exponent of {c}" for c in COLUMNS.values()) + " |"]
        lines += ["|---" * (1 + len(COLUMNS)) + "|"]
        for key, slopes in exponents(found["rows"][along], along).items():
            shown = (f"{value:.2f}" if math.isfinite(value) else "not_run" for value in slopes.values())
            lines.append(f"| {key} | {' | '.join(shown)} |")
        lines += ["", f"| {along} | target | export | peak memory | step |", "|---|---|---|---|---|"]
        for r in found["rows"][along]:
            step = f"{1e3 * r['step_seconds']:.1f} ms" if "step_seconds" in r else "not_run"
            lines.append(f"| {r[along]} | {r['target']} | {r['seconds']:.1f} s | {r['peak_bytes'] / 1e9:.2f} GB | {step} |")
        lines.append("")
    return "\n".join(lines)


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Time and memory of exports, and time of a step, over both axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {"seconds": "export, s", "peak_bytes": "export's peak, GB", "step_seconds": "step, s"}
    figure, grid = plt.subplots(len(SERIES), len(shown), figsize=(12, 7), constrained_layout=True)
    for axes, along in zip(grid, SERIES, strict=True):
        for axis, (what, label) in zip(axes, shown.items(), strict=True):
            for key in TARGETS:
                rows = [r for r in found["rows"][along] if r["target"] == key and what in r]
                scale = 1e9 if what == "peak_bytes" else 1.0
                if rows:
                    axis.plot([r[along] for r in rows], [r[what] / scale for r in rows], "o-", label=key)
            axis.set(xscale="log", yscale="log", xlabel=along, ylabel=label)
            axis.grid(alpha=0.3, which="both")
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    found: dict[str, Any] = {"environment": environment(), "threads": threads, "rows": {along: [] for along in SERIES}}
    for along, pairs in SERIES.items():
        for tokens, blocks in pairs:
            for key in TARGETS:
                found["rows"][along].append(measure(tokens, blocks, key, threads))
                print(json.dumps(found["rows"][along][-1]), flush=True)
    (RESULTS / "growth.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "growth.md").write_text(table(found) + "\n")
    draw(found, RESULTS / "growth.png")
    print(table(found))


if __name__ == "__main__":
    main()
