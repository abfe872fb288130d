"""What goes into a package: pictures, shapes from a range or a list, inputs with a default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from snapgen_deploy.export.mil import PackageError, open_package
from tests.mil.mil_harness import TARGETS, ct

RNG = np.random.default_rng(2)


def _image_model(path: Path, layout: str, out: str) -> Path:
    channels = 1 if layout.startswith("GRAYSCALE") else 3
    weights = np.eye(channels, dtype=np.float32).reshape(channels, channels, 1, 1)

    class Identity(torch.nn.Module):
        def forward(self, picture: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.conv2d(picture, torch.from_numpy(weights))

    exported = torch.export.export(Identity(), (torch.zeros(1, channels, 2, 3),)).run_decompositions({})
    model = ct.convert(
        exported,
        inputs=[
            ct.ImageType(
                "picture",
                (1, channels, 2, 3),
                color_layout=getattr(ct.colorlayout, layout),
                scale=0.5,
                bias=[10.0] * channels if channels > 1 else 10.0,
            )
        ],
        outputs=[ct.ImageType("result", color_layout=getattr(ct.colorlayout, out))],
        minimum_deployment_target=TARGETS[16],
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    model.save(str(path))
    return path


PIXELS = RNG.integers(0, 256, (2, 3, 3)).astype(np.uint8)


@pytest.mark.parametrize("layout", ["RGB", "BGR"])
def test_pictures(layout: str, tmp_path: Path) -> None:
    """Preprocessing (x * 0.5 + 10) is part of the program; the channel order is the declared one on both sides."""
    runner = open_package(_image_model(tmp_path / "p.mlpackage", layout, layout))
    assert runner.inputs[0].kind == runner.outputs[0].kind == "image"
    wanted = np.round(PIXELS * 0.5 + 10)
    for given in (PIXELS, Image.fromarray(PIXELS), Image.fromarray(PIXELS).convert("RGBA")):
        got = runner({"picture": given})["result"]
        assert got.dtype == np.uint8
        assert np.array_equal(got, wanted)


def test_channel_order_reaches_the_program(tmp_path: Path) -> None:
    runner = open_package(_image_model(tmp_path / "p.mlpackage", "BGR", "RGB"))
    assert np.array_equal(runner({"picture": PIXELS})["result"], np.round(PIXELS[:, :, ::-1] * 0.5 + 10))


def test_real_valued_gray_pictures(tmp_path: Path) -> None:
    layout = "GRAYSCALE_FLOAT16"
    runner = open_package(_image_model(tmp_path / "p.mlpackage", layout, layout))
    gray = np.array([[0.5, 1.25, -3], [100.5, 7, 0]], np.float32)
    for given in (gray, Image.fromarray(gray)):
        got = runner({"picture": given})["result"]
        assert got.dtype == np.float16
        assert np.array_equal(got, gray * 0.5 + 10)


def test_gray_pictures_and_sizes(tmp_path: Path) -> None:
    runner = open_package(_image_model(tmp_path / "p.mlpackage", "GRAYSCALE", "GRAYSCALE"))
    gray = PIXELS[:, :, 0].copy()
    assert np.array_equal(runner({"picture": gray})["result"], np.round(gray * 0.5 + 10))
    with pytest.raises(PackageError, match=r"\[4, 4\].*image GRAYSCALE.*\[2, 3\]"):
        runner({"picture": np.zeros((4, 4), np.uint8)})


KERNEL = torch.from_numpy(RNG.normal(size=(3, 2, 3, 3)).astype(np.float32))


class Rows(torch.nn.Module):
    """Pixels as rows of a matrix: its shape must follow the picture's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, KERNEL, padding=1).flatten(2).transpose(1, 2)


def _flexible(path: Path, shape: Any, dynamic: dict[int, Any]) -> Path:
    exported = torch.export.export(Rows(), (torch.zeros(1, 2, 8, 8),), dynamic_shapes=({**dynamic},))
    ct.convert(
        exported.run_decompositions({}),
        inputs=[ct.TensorType("x", shape)],
        outputs=[ct.TensorType("y")],
        minimum_deployment_target=TARGETS[17],
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    ).save(str(path))
    return path


def _check_flexible(path: Path, good: list[tuple[int, int]], bad: tuple[int, int], words: str) -> None:
    runner = open_package(path)
    for height, width in good:
        x = RNG.normal(size=(1, 2, height, width)).astype(np.float32)
        assert np.allclose(runner({"x": x})["y"], Rows()(torch.from_numpy(x)), atol=1e-6)
    with pytest.raises(PackageError, match=words):
        runner({"x": np.zeros((1, 2, *bad), np.float32)})


def test_ranges_of_shapes(tmp_path: Path) -> None:
    sizes = {2: torch.export.Dim("h", min=2, max=16), 3: torch.export.Dim("w", min=2, max=16)}
    shape = ct.Shape((1, 2, ct.RangeDim(4, 12, default=8), ct.RangeDim(4, 12, default=8)))
    path = _flexible(tmp_path / "p.mlpackage", shape, sizes)
    _check_flexible(path, [(8, 8), (4, 12), (10, 6)], (14, 8), r"\[1\.\.1, 2\.\.2, 4\.\.12, 4\.\.12\]")


def test_enumerated_shapes(tmp_path: Path) -> None:
    sizes = {2: torch.export.Dim("h", min=2, max=16), 3: torch.export.Dim("w", min=2, max=16)}
    shape = ct.EnumeratedShapes([(1, 2, 8, 8), (1, 2, 4, 12)], default=(1, 2, 8, 8))
    path = _flexible(tmp_path / "p.mlpackage", shape, sizes)
    _check_flexible(path, [(8, 8), (4, 12)], (8, 12), r"one of .*\[1, 2, 4, 12\]")


def test_inputs_with_a_default_may_be_left_out(tmp_path: Path) -> None:
    class Sum(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b

    exported = torch.export.export(Sum(), (torch.zeros(3), torch.zeros(3))).run_decompositions({})
    path = tmp_path / "p.mlpackage"
    ct.convert(
        exported,
        inputs=[ct.TensorType("a", (3,)), ct.TensorType("b", (3,), default_value=np.full(3, 2.5, np.float32))],
        outputs=[ct.TensorType("y")],
        minimum_deployment_target=TARGETS[16],
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    ).save(str(path))
    runner = open_package(path)
    assert [(p.optional, p.default) for p in runner.inputs] == [(False, None), (True, 2.5)]
    a, b = np.arange(3, dtype=np.float32), np.ones(3, np.float32)
    assert runner({"a": a})["y"].tolist() == [2.5, 3.5, 4.5]
    assert runner({"a": a, "b": b})["y"].tolist() == [1, 2, 3]
