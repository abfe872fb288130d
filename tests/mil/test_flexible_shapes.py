"""Networks with flexible shapes through coremltools: every admissible size against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from snapgen_deploy.export.mil import open_package
from tests.mil.mil_harness import TARGETS, ct, relative


class Strided(nn.Module):
    """Two convolutions of stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(F.silu(self.first(x)))
        return y


class Doubled(nn.Module):
    """Nearest x2 to a size that follows from the input's, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y


class Attention(nn.Module):
    """Two heads over the second of three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (2, 8)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y


class OverPixels(nn.Module):
    """Attention over the pixels of a map, which gets its shape back."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x.flatten(2).transpose(1, 2)).transpose(1, 2)
        return y.unflatten(2, (x.shape[2], x.shape[3]))


class Embedded(nn.Module):
    """Token ids, a table of positions read by an arange, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places, self.attention = nn.Embedding(50, 16), nn.Embedding(64, 16), Attention()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device)))
        return y


@dataclass(frozen=True)
class Flexible:
    """A network, its free axes with their bounds, and its input at the sizes of those."""

    make: Callable[[], nn.Module]
    axes: dict[int, tuple[int, int]]
    sample: Callable[..., Tensor]
    sizes: tuple[tuple[int, ...], ...]


MAP = {2: (8, 64), 3: (8, 128)}
MAPS = ((16, 24), (8, 8), (64, 8), (13, 128))
NETWORKS = {
    "stride 2": Flexible(Strided, MAP, lambda h, w: torch.randn(1, 3, h, w), MAPS),
    "nearest x2": Flexible(Doubled, MAP, lambda h, w: torch.randn(1, 3, h, w), MAPS),
    "attention over pixels": Flexible(OverPixels, MAP, lambda h, w: torch.randn(1, 16, h, w), MAPS[:3]),
    "attention": Flexible(Attention, {1: (1, 64)}, lambda n: torch.randn(2, n, 16), ((16,), (1,), (63,))),
    "token ids": Flexible(Embedded, {1: (1, 64)}, lambda n: torch.randint(50, (1, n), dtype=torch.int32), ((16,), (1,), (64,))),
}


def convert(network: nn.Module, case: Flexible, shape: Any, path: Path, ios: int, half: bool) -> Path:
    example = case.sample(*case.sizes[0])
    exported = torch.export.export(network, (example,), dynamic_shapes=(dict.fromkeys(case.axes, Dim.DYNAMIC),))
    ct.convert(
        exported.run_decompositions({}),
        inputs=[ct.TensorType("x", shape, dtype=np.float32 if example.is_floating_point() else np.int32)],
        outputs=[ct.TensorType("y", dtype=np.float32)],
        minimum_deployment_target=TARGETS[ios],
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        skip_model_load=True,
    ).save(str(path))
    return path


def check(network: nn.Module, case: Flexible, path: Path, tolerance: float) -> None:
    fp32, device = open_package(path), open_package(path, mode="device")
    for sizes in case.sizes:
        x = case.sample(*sizes)
        with torch.no_grad():
            wanted = network(x).numpy()
        got = fp32({"x": x.numpy()})["y"]
        assert got.shape == wanted.shape
        assert relative(got, wanted) <= tolerance
        assert relative(device({"x": x.numpy()})["y"], wanted) <= 2e-2


@pytest.mark.parametrize(("ios", "half"), [(15, False), (18, True)])
@pytest.mark.parametrize("name", NETWORKS)
def test_ranges(name: str, ios: int, half: bool, tmp_path: Path) -> None:
    torch.manual_seed(3)
    case = NETWORKS[name]
    network = case.make().eval()
    example = case.sample(*case.sizes[0])
    shape = [
        ct.RangeDim(*case.axes[axis], default=size) if axis in case.axes else size for axis, size in enumerate(example.shape)
    ]
    path = convert(network, case, ct.Shape(shape), tmp_path / "n.mlpackage", ios, half)
    check(network, case, path, 5e-3 if half else 1e-5)


@pytest.mark.parametrize("name", ["stride 2", "token ids"])
def test_enumerated(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    case = NETWORKS[name]
    network = case.make().eval()
    shape = ct.EnumeratedShapes([tuple(case.sample(*sizes).shape) for sizes in case.sizes])
    check(network, case, convert(network, case, shape, tmp_path / "n.mlpackage", 17, False), 1e-5)
