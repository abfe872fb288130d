"""A layer of sparse self-attention and a whole step of snapgenpp small in onnxruntime: operators beside standard operators.

    python -m benchmarks.attention_network [--size 1024] [--threads 2] [--step]

`spelled` is how attention was written before (two products and a softmax, rotary positions in slices and products). All files
run in turn. Weights are seeded: times do not depend on them. Writes benchmarks/results/attention_network.json and .md.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.networks import feed
from snapgen_deploy.export.base import Component
from snapgen_deploy.export.onnx.write import MEASURED, SPELLED
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.families.component import Spelling
from snapgen_deploy.families.registry import components_of, family_of
from snapgen_deploy.latency.environment import environment
from snapgen_deploy.latency.estimate.calibrate_graphs import BenchmarkGraph
from snapgen_deploy.latency.estimate.cost_components import Drawn, spelling_of
from snapgen_deploy.models import presets
from snapgen_deploy.plan.sizes import latent_of

RESULTS = Path(__file__).parent / "results"
CONFIG, WIDTH, KEY = presets.snapgenpp(), "small", "onnx:cpu"
ROUNDS = 5


def main() -> None:
    """Export, run in turn, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--step", action="store_true", help="the whole step, too: 436M parameters, ten minutes")
    options = parser.parse_args()
    latent = latent_of(CONFIG, (options.size, options.size))
    measured = {"layer": of_layer(latent[1:], options.threads)}
    if options.step:
        measured["step"] = compare({"step": step(options.size, latent)}, options.threads)
    document = {"environment": environment(), "size": options.size, "threads": options.threads, "measured": measured}
    (RESULTS / "attention_network.json").write_text(json.dumps(document, indent=1) + "\n")
    text = "\n".join(table(document))
    (RESULTS / "attention_network.md").write_text(text + "\n")
    print(text)


def of_layer(latent: tuple[int, int], threads: int) -> Mapping[str, Any]:
    """The first stage's layer, in each kernel form."""
    found = family_of(CONFIG).forms(CONFIG, WIDTH, latent, spelling_of(KEY).ops)
    return compare({name: BenchmarkGraph(name, x.module, x.shapes).component() for name, x in found.items()}, threads)


def step(size: int, latent: tuple[int, int, int]) -> Component:
    """The whole student, with seeded weights."""
    how, spec = spelling_of(KEY), next(s for s in components_of(CONFIG) if s.part == "denoise")
    form, ports = family_of(CONFIG).form(CONFIG, latent[1:]), spec.called(Drawn(WIDTH, (size, size), latent))
    torch.manual_seed(0)
    with torch.no_grad():
        module = spec.rewrite(spec.build(WIDTH), latent[1:], Spelling(how.layout, how.ops, how.upsample, form)).eval()
        example = tuple(torch.rand(p.shape).to(getattr(torch, p.dtype)) for p in ports.inputs)
    return Component(spec.name, module, ports.inputs, ports.outputs, example, "")


def compare(components: dict[str, Component], threads: int) -> Mapping[str, Any]:
    """Milliseconds of each component written in both ways, and how far apart their outputs are."""
    target, variant = target_of(KEY)
    with tempfile.TemporaryDirectory() as folder:
        calls, outputs = {}, {}
        while components:
            name, component = components.popitem()
            for attention in (SPELLED, MEASURED):
                place = Path(folder) / name / attention
                place.mkdir(parents=True)
                path = target.export(component, variant, "fp32", place, {"attention": attention}).path
                calls[name, attention] = (path, feed(component))
            del component
            gc.collect()
        sessions = {key: (target.open(path, threads=threads), inputs) for key, (path, inputs) in calls.items()}
        times: dict[tuple[str, str], list[float]] = {key: [] for key in sessions}
        for key, (run, inputs) in sessions.items():
            outputs[key] = next(iter(run(inputs).values()))
        for _ in range(ROUNDS):
            for key, (run, inputs) in sessions.items():
                start = time.perf_counter()
                run(inputs)
                times[key].append(1e3 * (time.perf_counter() - start))
    return {name: row(name, times, outputs) for name in sorted({name for name, _ in times})}


def row(name: str, times: Mapping[tuple[str, str], list[float]], outputs: Mapping[tuple[str, str], np.ndarray]) -> Any:
    """Both times, the ratio of the rounds and the difference of the outputs."""
    before, after = times[name, SPELLED], times[name, MEASURED]
    old, new = outputs[name, SPELLED], outputs[name, MEASURED]
    return {
        "spelled_ms": statistics.median(before),
        "operators_ms": statistics.median(after),
        "ratio": statistics.median(a / b for a, b in zip(after, before, strict=True)),
        "error": float(np.abs(new - old).max() / np.abs(old).max()),
    }


def table(document: Mapping[str, Any]) -> Iterable[str]:
    """The Markdown lines."""
    about = document["environment"]
    yield f"snapgenpp small at {document['size']}², fp32, {document['threads']} threads, medians of {ROUNDS}"
    yield f"rounds; {about['processor']}, onnxruntime {about['onnxruntime']}."
    yield ""
    yield "| what | spelled | with operators | ratio | largest difference |"
    yield "|---|---|---|---|---|"
    for what, rows in document["measured"].items():
        for name, r in rows.items():
            named = what if name == what else f"{what}, {name}"
            yield f"| {named} | {r['spelled_ms']:.0f} ms | {r['operators_ms']:.0f} ms | {r['ratio']:.2f} | {r['error']:.1e} |"


if __name__ == "__main__":
    main()
