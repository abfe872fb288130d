"""Core ML in mixed precision: what it refuses. What it writes is held against the tuned network by tests/cli/test_mixed.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Component, Port
from snapgen_deploy.export.coreml.palettes import constant_name, palette_name
from snapgen_deploy.export.coreml.target import CoreML
from snapgen_deploy.export.onnx.target import Onnx


def layer(palettes: dict[str, int]) -> Component:
    """A 1x1 convolution whose weight takes four values."""
    network = nn.Conv2d(8, 16, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([-0.5, -0.125, 0.25, 1.0]).repeat(32).view(16, 8, 1, 1))
    ports = (Port("x", (1, 8, 4, 4), "float32", ""), Port("y", (1, 16, 4, 4), "float32", ""))
    return Component("student", network.eval(), ports[:1], ports[1:], (torch.ones(1, 8, 4, 4),), "", palettes=palettes)


def test_fewest_bits_and_the_same_values(tmp_path: Path) -> None:
    component = layer({"weight": 4})
    artifact = CoreML().export(component, "", "mixed", tmp_path, {})
    weights = CoreML().weights(artifact.path)
    stored = weights.pop(palette_name(constant_name("weight")))
    assert (stored.kind, stored.values, stored.bits) == ("palette2", 128, 2 * 128 + 4 * 16)
    assert sum(w.bits for w in weights.values()) <= 16 * 16  # the bias, where it is large enough for the weight file
    x = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    y = CoreML().open(artifact.path, threads=1)({"x": x.numpy()})["y"]
    assert torch.allclose(torch.from_numpy(y), component.module(x), atol=1e-2)


def test_equal_weights_are_stored_once(tmp_path: Path) -> None:
    first = layer({}).module
    network = nn.Sequential(first, nn.ReLU(), nn.ConvTranspose2d(16, 8, 1), nn.ReLU(), layer({}).module)
    ports = (Port("x", (1, 8, 4, 4), "float32", ""), Port("y", (1, 16, 4, 4), "float32", ""))
    x = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    component = Component("student", network.eval(), ports[:1], ports[1:], (x,), "", palettes={"0.weight": 4, "4.weight": 4})
    for target, variant in ((CoreML(), ""), (Onnx(), "cpu")):
        artifact = target.export(component, variant, "mixed", tmp_path, {})
        assert len([w for w in target.weights(artifact.path).values() if w.index_bits]) == 1
        y = target.open(artifact.path, threads=1)({"x": x.numpy()})["y"]
        assert torch.allclose(torch.from_numpy(y), network(x), atol=1e-2)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="expected iOS18 or later"):
        CoreML().export(layer({"weight": 4}), "", "mixed", tmp_path, {"deployment": "iOS17"})
    with pytest.raises(RuntimeError, match="1 palettes were stored for 1 different weights; wrong: p_weight_to_fp16"):
        CoreML().export(layer({"weight": 1}), "", "mixed", tmp_path, {})
    with pytest.raises(RuntimeError, match="0 palettes were stored for 1 different weights"):
        CoreML().export(layer({"bias_of_another": 4}), "", "mixed", tmp_path, {})
    assert not list(tmp_path.iterdir())
