"""Peak memory of every process of an export, and the bytes of its weights in fp32 and of the largest activations.

    python -m benchmarks.export_memory [target ...]

Writes benchmarks/results/export_memory.txt. The networks are the embedded checkpoint at full width and an untrained one of
about 100M parameters, exported by the command line in a temporary folder. There is one line per process, then a least-squares
fit `base + factor * bytes` per target over its conversions. The figures in the targets' specs and in
`snapgen_deploy/job/memory.py` are slightly above these.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy.checkpoint import open_checkpoint
from snapgen_deploy.checkpoint.initial import write_initial
from snapgen_deploy.drawing.ports import roles_of
from snapgen_deploy.job.memory import weight_bytes
from snapgen_deploy.models import PRESETS, ModelConfig
from snapgen_deploy.models.dit_config import dit_of
from snapgen_deploy.plan.widths import activation_bytes

TARGETS = ("onnx:cpu", "coreml", "executorch:xnnpack")
PROGRAM = str(Path(sys.executable).with_name("snapgen-deploy"))


def middle() -> ModelConfig:
    """About 100M parameters, 256 x 256 pictures."""
    shapes = PRESETS["shapes"]()
    student = replace(dit_of(shapes), hidden=1024, head_dim=64, depths=(2, 4, 2), cross_dim=512)
    return replace(shapes, student=student, name="middle", resolution=(256, 256))


def main(targets: tuple[str, ...] = TARGETS) -> None:
    """Measure and write."""
    results = Results("export_memory.txt")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_initial(middle(), root / "middle")
        for key in targets:
            points = []
            for name, checkpoint in (("embedded", None), ("middle", root / "middle")):
                config = open_checkpoint(checkpoint).config
                run = exported(key, checkpoint, root)
                all_weights = sum(weight_bytes(config, "full", role) for role in roles_of(config))
                height, width = config.resolution
                factor = config.student.latent_factor
                latent = (config.student.latent_channels, height // factor, width // factor)
                activations = activation_bytes(config, "full", latent, config.resolution)
                for what in ("reference", "check"):
                    peak = run["reference_peak_bytes"] if what == "reference" else run["targets"][key]["check_peak_bytes"]
                    results.add(line(key, name, what, all_weights, peak, f"activations {activations / 1e6:8.1f} MB"))
                for role, peak in run["targets"][key]["export_peak_bytes"].items():
                    points.append((weight_bytes(config, "full", role), peak))
                    results.add(line(key, name, role, *points[-1]))
            weights, peaks = np.array(points, dtype=float).T
            factor, base = np.polyfit(weights, peaks, 1)
            worst = max(peak - (base + factor * own) for own, peak in points)
            results.add(f"{key:20} base {base / 1e6:.0f} MB, factor {factor:.2f}, largest excess {worst / 1e6:.0f} MB")


class Results:
    """Lines that are printed and written to a file."""

    def __init__(self, name: str) -> None:
        self.path, self.lines = Path(__file__).parent / "results" / name, list[str]()

    def add(self, line: str) -> None:
        """Add a line."""
        print(line, flush=True)
        self.lines.append(line)
        self.path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")


def line(key: str, name: str, what: str, weights: int, peak: int, more: str = "") -> str:
    """The line of one process."""
    return f"{key:20} {name:9} {what:13} weights {weights / 1e6:8.1f} MB  peak {peak / 1e6:8.1f} MB  {more}".rstrip()


def exported(key: str, checkpoint: Path | None, root: Path) -> dict[str, Any]:
    """Export, and return the record of the export's processes."""
    chosen = ["--checkpoint", str(checkpoint)] if checkpoint else []
    arguments = ["--device", "server", "--target", key, "--width", "full", *chosen, "-o", str(root), "--threads", "1"]
    command = [PROGRAM, "export", *arguments, "--overwrite", "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | {"XDG_CACHE_HOME": str(root / "cache")})
    run: dict[str, Any] = json.loads(done.stdout)["run"]
    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", default=list(TARGETS), metavar="TARGET", help=f"by default {', '.join(TARGETS)}")
    main(tuple(parser.parse_args().targets))
