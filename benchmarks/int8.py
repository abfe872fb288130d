"""A step of the student at int8-dynamic beside fp32, and where onnxruntime's time goes at each, operator by operator.

    python -m benchmarks.int8 [--width small] [--resolution 1024] [--threads 2] [--rounds 3]

snapgenpp with random weights, on the targets that run 8-bit products here. Both precisions run in turn in one process. Writes
benchmarks/results/int8.json and .md.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.networks import component, feed
from benchmarks.rate import Entry, profile
from benchmarks.timing import in_turn
from snapgen_deploy.export.base import Component
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.latency.environment import environment
from snapgen_deploy.models import PRESETS

RESULTS = Path(__file__).parent / "results"
GOALS = {"onnx:cpu": 2.3, "executorch:xnnpack": 2.5}
FP32, INT8 = "fp32", "int8-dynamic"
SHOWN = 8  # operators of a profile


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", default="small")
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {"options": vars(options), "environment": environment(), "targets": {}}
    for key in GOALS:
        with tempfile.TemporaryDirectory() as folder:
            found["targets"][key] = measured(key, options, Path(folder))
        print(json.dumps({key: found["targets"][key]}), flush=True)
    (RESULTS / "int8.json").write_text(json.dumps(found, indent=1) + "\n")
    text = "\n".join(table(found)) + "\n"
    (RESULTS / "int8.md").write_text(text)
    print(text)


def measured(key: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Times of both precisions, how far apart their outputs are, and onnxruntime's profile."""
    entries = [exported(key, precision, options, folder) for precision in (FP32, INT8)]
    exact, near = (next(iter(e.run().values())) for e in entries)  # type: ignore[attr-defined]
    before, after = in_turn([e.run for e in entries], options.rounds)
    row: dict[str, Any] = {
        "fp32_ms": statistics.median(before),
        "int8_ms": statistics.median(after),
        "speed": statistics.median(b / a for b, a in zip(before, after, strict=True)),
        "error": float(np.sqrt(np.mean((near - exact) ** 2)) / exact.std()),
    }
    if key == "onnx:cpu":
        row["profile"] = {entry.name: profile(entry, options.threads, folder) for entry in entries}
    return row


def exported(key: str, precision: str, options: argparse.Namespace, folder: Path) -> Entry:
    """A student's file at a precision, loaded, with its inputs."""
    place = folder / precision
    place.mkdir()
    torch.manual_seed(0)
    with torch.no_grad():
        made: Component = component(PRESETS["snapgenpp"](), options.width, (options.resolution,) * 2, key)
    target, variant = target_of(key)
    inputs = feed(made)
    path = target.export(made, variant, precision, place, {}).path
    del made
    gc.collect()
    run = target.open(path, threads=options.threads)
    return Entry(key, precision, 0, lambda: run(inputs), path, inputs)


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """The Markdown lines."""
    o, about = found["options"], found["environment"]
    yield f"snapgenpp {o['width']}, {o['resolution']} x {o['resolution']}, one step, threads: {o['threads']}; medians of"
    yield f"{o['rounds']} rounds in turn; {about['processor']}."
    yield ""
    yield "| runtime | fp32 | int8-dynamic | times as fast | goal | error of a step |"
    yield "|---|---|---|---|---|---|"
    for key, row in found["targets"].items():
        figures = f"{row['fp32_ms'] / 1e3:.2f} s | {row['int8_ms'] / 1e3:.2f} s | {row['speed']:.2f}"
        yield f"| {key} | {figures} | {GOALS[key]} | {row['error']:.1e} |"
    yield ""
    yield "onnxruntime's time by operator:"
    yield ""
    for precision, spent in found["targets"]["onnx:cpu"]["profile"].items():
        yield f"- {precision}: " + ", ".join(f"{op} {100 * share:.0f} %" for op, share in list(spent.items())[:SHOWN])


if __name__ == "__main__":
    main()
