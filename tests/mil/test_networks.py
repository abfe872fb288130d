"""Whole networks through coremltools and back from disk, against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from snapgen_deploy.export.mil import open_package
from tests.mil import mil_networks as networks
from tests.mil.mil_harness import TARGETS, ct, relative


def tokens(count: int, most: int = 50) -> Tensor:
    return torch.randint(3, most, (1, count), dtype=torch.int32)


def mask(count: int, used: int) -> Tensor:
    return (torch.arange(count) < used).float()[None]


Network = tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]], int, bool]
NETWORKS: dict[str, Network] = {
    "unet": (networks.UNet, lambda: (torch.randn(1, 4, 8, 8), torch.tensor([5.0]), torch.randn(1, 6, 24)), 18, False),
    "vae": (networks.VaeDecoder, lambda: (torch.randn(1, 4, 4, 4),), 15, False),
    "vit": (networks.vision_transformer, lambda: (torch.randn(1, 3, 32, 32),), 17, True),
    "clip": (networks.clip_text, lambda: (tokens(16),), 18, False),
    "t5": (networks.t5_encoder, lambda: (tokens(12), mask(12, 7)), 18, False),
    "student": (
        networks.student,
        lambda: (torch.randn(1, 4, 8, 8), torch.randn(1, 16), torch.randn(1, 6, 12), mask(6, 4)),
        18,
        True,
    ),
    "decoder": (networks.decoder, lambda: (torch.randn(1, 4, 4, 4),), 18, True),
    "text_encoder": (networks.text_encoder, lambda: (tokens(8), mask(8, 5)), 18, True),
}


def without_aliases(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """coremltools has no translation of aten.alias, which transformers' masks leave behind."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    return program


def convert(network: nn.Module, example: tuple[Tensor, ...], path: Path, ios: int, half: bool) -> Path:
    program = without_aliases(torch.export.export(network, example).run_decompositions({}))
    inputs = [
        ct.TensorType(f"i{n}", e.shape, dtype=np.float32 if e.is_floating_point() else np.int32) for n, e in enumerate(example)
    ]
    ct.convert(
        program,
        inputs=inputs,
        outputs=[ct.TensorType("y", dtype=np.float32)],
        minimum_deployment_target=TARGETS[ios],
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        skip_model_load=True,
    ).save(str(path))
    return path


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str, tmp_path: Path) -> None:
    make, inputs, ios, half = NETWORKS[name]
    torch.manual_seed(3)
    network, example = make().eval(), inputs()
    with torch.no_grad():
        wanted = network(*example).numpy()
    path = convert(network, example, tmp_path / "n.mlpackage", ios, half)
    arrays = {f"i{n}": e.numpy() for n, e in enumerate(example)}

    got = open_package(path)(arrays)["y"]
    # With fp16 weights the graph differs from PyTorch by the rounding of the weights alone.
    assert relative(got, wanted) <= (5e-3 if half else 1e-5)
    device = open_package(path, mode="device")
    rounded = device(arrays)["y"]
    assert relative(rounded, wanted) <= 2e-2
    report = device.report()
    if half:
        assert report.clean
        assert len(report.ops) > 10
        assert not np.array_equal(rounded, got), "device mode rounds nothing"
    else:
        assert report.ops == ()
        assert np.array_equal(rounded, got)


def test_a_mask_that_half_precision_cannot_hold(tmp_path: Path) -> None:
    """T5's mask, (1 - mask) * the least float32, becomes 0 * -inf when converted to fp16: every result is NaN."""
    torch.manual_seed(3)
    example = (tokens(6), mask(6, 4))
    path = convert(networks.t5_encoder(layers=1).eval(), example, tmp_path / "t5.mlpackage", 17, True)
    device = open_package(path, mode="device")
    device({f"i{n}": e.numpy() for n, e in enumerate(example)})
    report = device.report()
    assert report.has_nan
    assert not report.clean
    assert next(s.op for s in report.ops if s.nan) == "mul"
