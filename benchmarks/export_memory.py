"""Peak memory of the processes that convert components, against the bytes of the component's weights in fp32.

    python -m benchmarks.export_memory [target ...]

One line a conversion, then a least-squares line `base + factor * bytes` per target: the figures in
`snapgen_deploy/export_memory.py` are these, rounded up. Networks: every component of the embedded checkpoint at its widest,
and an untrained student of about 100M parameters, written to a temporary folder.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from snapgen_deploy.checkpoint import open_checkpoint
from snapgen_deploy.checkpoint.initial import write_initial
from snapgen_deploy.child import run_in_child
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.export_memory import weight_bytes
from snapgen_deploy.exporter import Request, export_in_child
from snapgen_deploy.models import PRESETS, ModelConfig
from snapgen_deploy.plan import make_plan

TARGETS = ("onnx:cpu", "coreml", "executorch:xnnpack")
CASES = (("embedded", "student"), ("embedded", "decoder"), ("embedded", "text_encoder"), ("middle", "student"))


def middle() -> ModelConfig:
    """About 100M parameters, 256 x 256 pictures."""
    shapes = PRESETS["shapes"]()
    student = replace(shapes.student, hidden=1024, head_dim=64, depths=(2, 4, 2), cross_dim=512)
    return replace(shapes, student=student, name="middle", resolution=(256, 256))


def main(targets: tuple[str, ...] = TARGETS) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_initial(middle(), root / "middle")
        for key in targets:
            points = []
            for name, role in CASES:
                checkpoint = None if name == "embedded" else root / name
                config = open_checkpoint(checkpoint).config
                plan = make_plan(config, load_profile("server"), width="full", targets=(key,))
                request = Request(checkpoint, None, root, (), 1)
                work = (request, plan, plan.targets[0], role, root / "out" / name, root)
                _, peak = run_in_child(f"{name} {role}", export_in_child, *work)
                points.append((weight_bytes(config, "full", role), peak))
                print(
                    f"{key:20} {name:9} {role:13} weights {points[-1][0] / 1e6:8.1f} MB  peak {peak / 1e6:8.1f} MB", flush=True
                )
            factor, base = np.polyfit(*np.array(points, dtype=float).T, 1)
            worst = max(peak - (base + factor * size) for size, peak in points)
            print(f"{key:20} base {base / 1e6:.0f} MB, factor {factor:.2f}, largest excess {worst / 1e6:.0f} MB", flush=True)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or TARGETS)
