"""Peak memory of a conversion, against the bytes of the weights that it converts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from snapgen_deploy.export.base import Component, Port
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.system.child import peak_bytes, run_in_child
from snapgen_deploy.system.host_memory import return_freed_memory

LAYERS, NARROW, WIDE = 8, 64, 2048
WEIGHTS = 4 * LAYERS * WIDE * WIDE  # bytes


def network(width: int) -> Component:
    """Linear layers of `width` channels, each with weights of its own."""
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS))).eval().requires_grad_(False)
    ports = (Port("text", (1, 4, width), "float32", "in"), Port("velocity", (1, 4, width), "float32", "out"))
    return Component("student", layers, ports[:1], ports[1:], (torch.ones(1, 4, width),), "linear layers", expendable=True)


def copies(key: str, precision: str, options: dict[str, str], root: Path) -> float:
    """Times that a wide network's weights add to the peak of a narrow one, which has loaded every library."""
    return_freed_memory()
    torch.set_num_threads(1)
    target, variant = target_of(key)
    peaks = []
    for width in (NARROW, WIDE):
        directory = root / str(width)
        directory.mkdir()
        target.describe(target.export(network(width), variant, precision, directory, options).path)
        peaks.append(peak_bytes())
    return (peaks[1] - peaks[0]) / WEIGHTS


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count resident memory otherwise")
@pytest.mark.parametrize(
    ("key", "precision", "options", "most"),
    [
        ("onnx:cpu", "fp32", {}, 1.5),
        ("onnx:cpu", "fp32", {"optimize": "optimum"}, 1.5),
        ("executorch:xnnpack", "fp32", {}, 1.5),
        ("coreml", "fp16", {}, 2.2),
    ],
)
def test_weights_are_held_twice_at_most(key: str, precision: str, options: dict[str, str], most: float, tmp_path: Path) -> None:
    """The limits leave room for one layer's copy, an eighth here."""
    found, _ = run_in_child(key, copies, key, precision, options, tmp_path)
    assert 1.0 < found < most
