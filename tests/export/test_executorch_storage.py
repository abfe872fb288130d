"""Constants that are parts of larger tensors: halves of a fused projection, columns, transposed ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from snapgen_deploy.export.base import Component, Port
from snapgen_deploy.export.executorch.target import ExecuTorch

pytest.importorskip("executorch")
TARGET = ExecuTorch()
PARTS = {
    "first": lambda whole: whole[:8],
    "second": lambda whole: whole[8:],
    "columns": lambda whole: whole[:8].repeat(1, 2)[:, 3:11],
    "transposed": lambda whole: whole[8:].T,
    "own": lambda whole: whole[8:].clone(),
}


class Halves(nn.Module):
    """A product, a sum and a convolution with a part of a tensor, held as a parameter or a buffer."""

    def __init__(self, part: Tensor, held: str) -> None:
        super().__init__()
        if held == "parameter":
            self.part = nn.Parameter(part)
        else:
            self.register_buffer("part", part)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.part) + self.part
        return nn.functional.conv2d(y.reshape(1, 8, 2, 4), self.part[:, :, None, None]) @ self.part[:4, :4]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("held", ["parameter", "buffer"])
def test_a_part_of_a_tensor_is_that_part(held: str, part: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    whole, x = torch.randn(16, 8, generator=generator), torch.randn(8, 8, generator=generator)
    module = Halves(PARTS[part](whole), held).eval().requires_grad_(False)
    ports = (Port("x", (8, 8), "float32", ""),), (Port("y", (1, 8, 2, 4), "float32", ""),)
    path = TARGET.export(Component("student", module, *ports, (x,), ""), "xnnpack", "fp32", tmp_path, {}).path
    got, expected = TARGET.open(path, threads=1)({"x": x.numpy()})["y"], module(x).numpy()
    assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)
