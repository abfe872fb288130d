"""`python -m benchmarks.coreml_speed`: how long does our Core ML executor take for one step at full scale, and PyTorch?

Converts the student of the `snapgenpp` preset (random weights) at the given width and picture size to a fp16 .mlpackage, reads
it back from disk, and runs one step in both modes and with the fp32 reference network, on the same number of threads. The calls
alternate; ratios are of medians. Writes coreml_speed.json to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.drawing.ports import ports_of
from snapgen_deploy.export.base import Component
from snapgen_deploy.export.mil.runner import open_package
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.latency.environment import environment
from snapgen_deploy.models import PRESETS, DiT
from snapgen_deploy.models.dit_config import dit_of
from snapgen_deploy.plan.make import make_plan
from snapgen_deploy.sparse import rewrite_student

RESULTS = Path(__file__).parent / "results"
LIMIT = 3.0  # largest ratio to PyTorch eager in fp32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", default="small")
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--calls", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = PRESETS["snapgenpp"]()
    size = (options.resolution, options.resolution)
    plan = make_plan(config, load_profile("iphone16pm"), width=options.width, targets=["coreml"], resolution=size)
    inputs, outputs, doc = ports_of(config, plan, "student")
    torch.manual_seed(0)
    student = DiT(dit_of(config), options.width).eval().requires_grad_(False)
    arrays = {p.name: np.ones(p.shape, np.float32) if p.name.endswith("_mask") else _normal(p.shape) for p in inputs}
    latent, target = (plan.latent[1], plan.latent[2]), plan.targets[0]
    module = rewrite_student(student, latent, layout="channels", form=target.form, ops="spelled")
    component = Component("student", module.eval(), inputs, outputs, tuple(torch.ones(p.shape) for p in inputs), doc)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        coreml, _ = target_of("coreml")
        package = coreml.export(component, "", "fp16", Path(folder), dict(target.options)).path
        converted = time.monotonic() - start
        print(f"converted in {converted:.0f} s", flush=True)
        runs = {m: open_package(package, mode=m, threads=options.threads) for m in ("fp32", "device")}
        ours: dict[str, Callable[[], object]] = {m: lambda run=run: run(arrays) for m, run in runs.items()}  # type: ignore[misc]
        times = timed({"eager fp32": lambda: reference(student, arrays), **ours}, options.calls)
    found = {name: statistics.median(values) for name, values in times.items()}
    ratios = {name: found[name] / found["eager fp32"] for name in runs}
    record = {
        "width": options.width, "resolution": list(size), "threads": options.threads, "convert_s": round(converted, 1),
        "seconds": times, "ratio_to_eager": ratios, "limit": LIMIT, "environment": environment(),
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "coreml_speed.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    for name, seconds in found.items():
        print(f"{name:12} {seconds:7.2f} s  {seconds / found['eager fp32']:.2f} x eager")
    if not max(ratios.values()) <= LIMIT:
        raise SystemExit(1)


def _normal(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def reference(student: DiT, arrays: dict[str, np.ndarray]) -> torch.Tensor:
    """One step of the reference network in PyTorch eager, fp32."""
    t = {name: torch.from_numpy(value) for name, value in arrays.items()}
    text = {n: v for n, v in t.items() if n not in ("latent", "time_features") and not n.endswith("_mask")}
    mask = {n: t[f"{n}_mask"] for n in text}
    with torch.inference_mode():
        out: torch.Tensor = student(t["latent"], t["time_features"], text, mask)
    return out


def timed(calls: dict[str, Callable[[], object]], count: int) -> dict[str, list[float]]:
    """Seconds of every call; the calls alternate."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(count):
        for name, call in calls.items():
            start = time.monotonic()
            call()
            times[name].append(round(time.monotonic() - start, 3))
            print(f"{name} {times[name][-1]:.1f} s", flush=True)
    return times


if __name__ == "__main__":
    main()
