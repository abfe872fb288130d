"""Jobs of small files: what runs them is a fake, so their contents do not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from snapgen_deploy.latency.links.base import LinkJob

STEPS = 4
CALLS = {"text_encoder": 1, "student": STEPS, "decoder": 1}


def make_job(folder: Path, target: str = "executorch:xnnpack", suffix: str = ".pte") -> LinkJob:
    components, inputs = {}, {}
    for role in CALLS:
        components[role] = folder / f"{role}{suffix}"
        if suffix == ".mlpackage":
            components[role].mkdir()
        else:
            components[role].write_bytes(role.encode() * 100)
        inputs[role] = (folder / f"{role}.x.bin", folder / f"{role}.n.bin")
        inputs[role][0].write_bytes(np.ones((2, 3), np.float32).tobytes())
        inputs[role][1].write_bytes(np.arange(4, dtype=np.int32).tobytes())
    files = {role: (path,) for role, path in components.items()}
    return LinkJob(target, "fp32", 2, components, files, inputs, CALLS)
