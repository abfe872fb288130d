"""`python -m benchmarks.rate`: what share of the machine's arithmetic speed do the exported layers reach?

The peak is the speed of one large matrix product (4096 x 512 x 1536, fp32) in the same runtime and the same rounds. Measured
are a whole ASSA layer and, with `--step`, a whole step of the student, of the `snapgenpp` preset at the given width and
picture size, with random weights. Arithmetic is counted in the exported graph (`latency.estimate.cost`). For onnxruntime, its
profiler shows which operators take the time. Writes rate.json and rate.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.networks import component, feed
from benchmarks.timing import in_turn
from snapgen_deploy.export.base import Component
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.latency.environment import environment
from snapgen_deploy.latency.estimate.calibrate_graphs import BenchmarkGraph
from snapgen_deploy.latency.estimate.cost import total, trace_costs
from snapgen_deploy.models import PRESETS, ModelConfig
from snapgen_deploy.models.dit_config import dit_of
from snapgen_deploy.sparse.fold import rope_constants
from snapgen_deploy.sparse.with_rope import WithRope

RESULTS = Path(__file__).parent / "results"
KEYS = ("onnx:cpu", "executorch:xnnpack")
ROOF, GOAL = "large product", 0.80


@dataclass(frozen=True)
class Entry:
    """One exported graph: how to run it, its arithmetic, and its file."""

    key: str
    name: str
    macs: int
    run: Callable[[], object]
    path: Path
    feed: dict[str, np.ndarray]


def main() -> None:
    """Export, time, count, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", default="small")
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step", action="store_true", help="a whole step too: minutes of export, gigabytes of memory")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = PRESETS["snapgenpp"]()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        entries = list(exported(config, options, Path(folder)))
        times = in_turn([e.run for e in entries], options.rounds)
        shares = {e.name: profile(e, options.threads, Path(folder)) for e in entries if e.key == "onnx:cpu" and e.name != ROOF}
    record = {
        "options": vars(options),
        "environment": environment(),
        "goal": GOAL,
        "rows": rows(entries, times),
        "profile": shares,
    }
    (RESULTS / "rate.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    (RESULTS / "rate.md").write_text(table(record))
    print(table(record))


def exported(config: ModelConfig, options: argparse.Namespace, folder: Path) -> Iterator[Entry]:
    """Export and load everything, one target after the other."""
    size = (options.resolution, options.resolution)
    for key in KEYS:
        whole = component(config, options.width, size, key)
        parts = {
            ROOF: BenchmarkGraph(ROOF, nn.Linear(512, 1536), ((1, 4096, 512),)).component(),
            "ASSA layer": sparse_layer(config, options.width, size, whole),
        }
        if options.step:
            parts["step of the student"] = whole
        for number, (name, part) in enumerate(parts.items()):
            start = time.monotonic()
            place = folder / f"{key.partition(':')[0]}{number}"
            place.mkdir()
            target, variant = target_of(key)
            path = target.export(part, variant, "fp32", place, {}).path
            run, macs = target.open(path, threads=options.threads), total(trace_costs(part)).macs
            inputs = feed(part)
            print(f"{key}, {name}: {macs / 1e9:.2f} GMAC, ready in {time.monotonic() - start:.0f} s", flush=True)
            yield Entry(key, name, macs, lambda run=run, inputs=inputs: run(inputs), path, inputs)  # type: ignore[misc]


def sparse_layer(config: ModelConfig, width: str, size: tuple[int, int], whole: Component) -> Component:
    """The first ASSA layer of the student: projections, both branches, fusion."""
    c = dit_of(config)
    rows, cols = c.grid(size[0] // c.latent_factor, size[1] // c.latent_factor)
    layer = WithRope(whole.module.get_submodule("down.0.attention"), rope_constants(rows, cols, c.head_dim, c.rope_theta))
    return BenchmarkGraph("ASSA layer", layer, ((1, rows * cols, c.hidden_at(width)),)).component()


def rows(entries: list[Entry], times: list[list[float]]) -> list[dict[str, Any]]:
    """Medians, rates, and the rates as shares of the peak in the same runtime."""
    found: list[dict[str, Any]] = []
    for entry, values in zip(entries, times, strict=True):
        ms = statistics.median(values)
        found.append({"runtime": entry.key, "name": entry.name, "macs": entry.macs, "ms": ms, "gflops": 2e-6 * entry.macs / ms})
    roof = {r["runtime"]: r["gflops"] for r in found if r["name"] == ROOF}
    return [r | {"share": r["gflops"] / roof[r["runtime"]]} for r in found]


def profile(entry: Entry, threads: int, folder: Path) -> dict[str, float]:
    """Share of the time by kind of operator, from onnxruntime's profiler, in the second of two runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = threads, True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(entry.path, options, providers=["CPUExecutionProvider"])
    for _ in range(2):
        session.run(None, entry.feed)
    events = [e for e in json.loads(Path(session.end_profiling()).read_text()) if e.get("cat") == "Node"]
    spent: dict[str, float] = {}
    for event in events[len(events) // 2 :]:
        if event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] = spent.get(event["args"]["op_name"], 0.0) + event["dur"]
    whole = sum(spent.values())
    return {name: value / whole for name, value in sorted(spent.items(), key=lambda s: -s[1])}


def table(record: dict[str, Any]) -> str:
    """Markdown: rates, then the operators that take onnxruntime's time."""
    o, cpu = record["options"], record["environment"]["processor"]
    lines = [
        f"snapgenpp {o['width']}, {o['resolution']} x {o['resolution']}, fp32, threads: {o['threads']}; medians of "
        f"{o['rounds']} rounds; {cpu}. Goal: {100 * record['goal']:.0f} % of the large product's rate.",
        "",
        "| runtime | what | GMAC | ms | GFLOP/s | of the large product |",
        "|---|---|---|---|---|---|",
    ]
    for r in record["rows"]:
        figures = f"{r['macs'] / 1e9:.2f} | {r['ms']:.1f} | {r['gflops']:.0f} | {100 * r['share']:.0f} %"
        lines.append(f"| {r['runtime']} | {r['name']} | {figures} |")
    lines += ["", "Where onnxruntime's time goes (share of all operators' time):", ""]
    for name, shares in record["profile"].items():
        most = ", ".join(f"{op} {100 * share:.0f} %" for op, share in list(shares.items())[:8])
        lines.append(f"- {name}: {most}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
