"""`python -m benchmarks.npu_forms`: which kernel form of the local attention works best with Qualcomm's compiler?

Compiles one ASSA layer of snapgenpp small, channels-first, random weights, fp16, for the Snapdragon 8 Elite, in every kernel
form. Records whether the NPU accepts it, its nodes, the seconds to compile and the bytes of its context binary, and its error
on the emulation. The emulation's time is not recorded, since it tells nothing about a phone. Writes npu_forms.json and
npu_forms.md to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from snapgen_deploy.check.gates import relative_error
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.errors import SnapgenError
from snapgen_deploy.export.base import Component
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.families.elastic_dit import untrained
from snapgen_deploy.latency.estimate.calibrate_graphs import BenchmarkGraph
from snapgen_deploy.models import PRESETS
from snapgen_deploy.models.dit_config import dit_of
from snapgen_deploy.sparse import FORMS
from snapgen_deploy.sparse.channels_forms import CHANNELS_FORMS
from snapgen_deploy.sparse.channels_layers import ChannelsSparseAttention
from snapgen_deploy.sparse.fold import rope_constants
from snapgen_deploy.sparse.with_rope import WithRope

RESULTS = Path(__file__).parent / "results"
DEVICE, WIDTH = "galaxy-s25u", "small"


def main() -> None:
    """Compile, run, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="picture sizes in pixels")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        for row in rows_of(size):
            rows.append(row)
            print(json.dumps(row), flush=True)
            (RESULTS / "npu_forms.json").write_text(json.dumps(rows, indent=1) + "\n")
            (RESULTS / "npu_forms.md").write_text(table(rows))


def rows_of(size: int) -> Iterator[dict[str, Any]]:
    """One row per form, with the same weights and inputs."""
    target, variant = target_of("onnx:qnn")
    chip = {name: f"{load_profile(DEVICE).figures[name].value:g}" for name in ("soc_model", "htp_arch")}
    for form in FORMS:
        part, about = layer(form, size), {"size": size, "form": form}
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            wanted = part.module(*part.example).numpy()
            start = time.monotonic()
            try:
                made = target.export(part, variant, "fp16", Path(folder), chip)
            except (SnapgenError, RuntimeError) as refused:
                yield about | {"refused": str(refused)}
                continue
            seconds = round(time.monotonic() - start, 1)
            found = target.open(made.path, threads=1)({"x0": part.example[0].numpy()})["y"]
            error = relative_error(found, wanted)
            description = target.describe(made.path)
            context = next(f for f in made.files if f.suffix == ".bin").stat().st_size
            measured = {"nodes": sum(description.placement.values()), "context_bytes": context, "relative_error": error}
            yield about | measured | {"compile_seconds": made.compile_seconds, "export_seconds": seconds}


def layer(form: str, size: int) -> Component:
    """The first stage's ASSA layer: (1, D, 1, N) -> (1, D, 1, N)."""
    c = dit_of(PRESETS["snapgenpp"]())
    grid = c.grid(size // c.latent_factor, size // c.latent_factor)
    cos, sin = (t.t().contiguous() for t in rope_constants(*grid, c.head_dim, c.rope_theta))  # (d, N)
    module = WithRope(ChannelsSparseAttention(untrained(c, WIDTH), CHANNELS_FORMS[form], grid), (cos, sin))
    return BenchmarkGraph(form, module, ((1, c.hidden_at(WIDTH), 1, grid[0] * grid[1]),)).component()


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        f"One ASSA layer of snapgenpp {WIDTH}, channels-first, fp16, for {load_profile(DEVICE).name}; run on the emulation.",
        "",
        "| picture | form | nodes, all on the NPU | compile | context | relative error |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        if "refused" in r:
            lines.append(f"| {r['size']} | {r['form']} | refused: {r['refused']} | | | |")
        else:
            seconds, megabytes = f"{r['compile_seconds']:.0f} s", f"{r['context_bytes'] / 1e6:.1f} MB"
            lines.append(f"| {r['size']} | {r['form']} | {r['nodes']} | {seconds} | {megabytes} | {r['relative_error']:.1e} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
