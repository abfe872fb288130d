"""Every precision of every target on one small component: read back, run, and made twice."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from snapgen_deploy.cli.result import quantisers_warnings
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Artifact, Component, Description, Port, packed
from snapgen_deploy.export.coreml import compress as coreml_compress
from snapgen_deploy.export.onnx import quantise as onnx_quantise
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.sparse.token_layers import TokenNorm
from tests.export.graph_cases import arrays, contents, reference
from tests.export.quantise_cases import attending, odd, uncalibrated, wide

# target, precision -> how its large layers are stored, largest relative error, average bits from and to
CASES = {
    ("coreml", "palette8"): ("palette8", 0.01, 8, 11),
    ("coreml", "palette4-grouped"): ("palette4 per 16 channels", 0.15, 4, 8),
    ("coreml", "int8"): ("int8 per 32 values", 0.01, 8, 11),
    ("coreml", "int4"): ("int4 per 32 values", 0.15, 4, 8),
    ("coreml", "w8a8"): ("int8 per channel", 0.03, 8, 10),
    ("executorch", "fp16"): ("float16", 0.01, 16, 22),
    ("executorch", "int8-dynamic"): ("int8 per channel", 0.03, 8, 11),
    ("executorch", "int4-dynamic"): ("int4 per 32 values", 0.2, 4, 8),
    ("onnx", "fp16"): ("float16", 0.01, 16, 17),
    ("onnx", "int8-dynamic"): ("int8 per channel", 0.03, 8, 16),
    ("onnx", "int8-static"): ("int8 per channel", 0.03, 8, 12),
    ("onnx", "int4"): ("int4 per 32 values", 0.15, 4, 14),
}
EACH = pytest.mark.parametrize(("target", "precision"), CASES)


@pytest.fixture(scope="module")
def made(once: Callable[[str, Callable[[Path], object]], Path]):
    @functools.cache
    def export(target: str, precision: str) -> tuple[Artifact, Description]:
        found, variant = target_of(target)
        name = f"quantised-{target}-{precision}"
        folder = once(name, lambda folder: found.export(wide(), variant, precision, folder, {}))
        (path,) = folder.glob(f"student{found.suffix}")
        files = tuple(sorted(f for f in folder.rglob("*") if f.is_file()))
        return Artifact(f"{target}:{variant}" if variant else target, "student", path, files), found.describe(path)

    return export


@EACH
def test_the_saved_file_computes_what_the_network_does(made, target, precision):
    artifact, _ = made(target, precision)
    got = target_of(target)[0].open(artifact.path, threads=1)(arrays(wide()))["velocity"]
    expected = reference(wide())
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert error <= CASES[target, precision][1]
    assert error > 1e-6, "nothing was rounded"


@pytest.mark.parametrize("precision", ["fp16", "int8-dynamic", "int8-static", "int4"])
def test_layers_behind_onnxruntime_s_own_operators_are_quantised(tmp_path, precision):
    """ONNX infers no types of what they make."""
    made = target_of("onnx:cpu")[0].export(attending(), "cpu", precision, tmp_path, {"attention": "operator"})
    found = target_of("onnx:cpu")[0].describe(made.path)
    assert found.ops["com.microsoft.MultiHeadAttention"] == 1
    assert not found.skipped
    got = target_of("onnx:cpu")[0].open(made.path, threads=1)(arrays(attending()))["states"]
    expected = reference(attending())
    assert 1e-6 < np.linalg.norm(got - expected) / np.linalg.norm(expected) < 0.15


@EACH
def test_weights_are_read_back(made, target, precision):
    _, found = made(target, precision)
    kind, _, low, high = CASES[target, precision]
    assert list(found.weights.values()).count(kind) >= 2, found.weights
    assert found.average_bits is not None
    assert low <= found.average_bits <= high
    assert all(f"not quantised: {name}: {why}" in found.notes for name, why in found.skipped.items())


@pytest.mark.parametrize(
    ("target", "precision", "why"),
    [
        ("coreml", "palette4-grouped", "192 values"),
        ("coreml", "w8a8", "192 values"),
        ("onnx", "int8-dynamic", "does not take Conv"),
        ("onnx", "int4", "does not take Conv"),
    ],
)
def test_layers_that_were_left_are_named_with_the_reason(made, target, precision, why):
    assert any(why in reason for reason in made(target, precision)[1].skipped.values())


@pytest.mark.parametrize("precision", ["fp16", "int8-dynamic", "int4-dynamic"])
def test_one_delegate(made, precision):
    found = made("executorch", precision)[1]
    assert found.placement["XnnpackBackend"] == 1
    assert set(found.portable_ops) <= {"dim_order_ops::_to_dim_order_copy.out"}
    assert bool(found.portable_ops) == (precision == "fp16")


@pytest.mark.parametrize(
    ("target", "precision", "why"),
    [
        ("coreml", "int4", "float16: 60x60 does not divide into blocks of 32 inputs"),
        ("coreml", "palette4-grouped", "float16: 60x60 does not divide into groups of 16 outputs"),
        ("executorch:xnnpack", "int4-dynamic", "float32: 60x60 does not divide into groups"),
    ],
)
def test_a_component_of_which_no_layer_divides_is_left_whole_and_says_so(target, precision, why, tmp_path: Path):
    found, variant = target_of(target)
    made = found.export(odd(), variant, precision, tmp_path, {})
    described = found.describe(made.path)
    assert list(described.skipped.values()) == [why, why]
    assert "nothing is quantised: all 2 layers are left" in described.notes
    assert not any(map(packed, described.weights.values()))
    got = found.open(made.path, threads=1)(arrays(odd()))["states"]
    np.testing.assert_allclose(got, reference(odd()), atol=2e-3)


def test_a_component_left_whole_is_a_warning():
    component = {"skipped": {"up": "no", "down": "neither"}, "weights": {"up": "float16", "down": "float16"}}
    targets = {"coreml": {"precision": "int4", "components": {"text_encoder": component}}}
    assert quantisers_warnings(targets) == ["coreml text encoder: int4 quantises nothing, all 2 layers left: up: no"]
    component["weights"]["down"] = "int4 per 32 values"
    assert quantisers_warnings(targets) == []


@pytest.mark.parametrize(
    ("precision", "shape", "axes", "why"),
    [
        ("int4", (60, 64, 1, 1), (0, 1), ""),
        ("int4", (64, 60, 1, 1), (0, 1), "64x60x1x1 does not divide into blocks of 32 inputs"),
        ("int4", (60, 64), (-1, -2), "60x64 does not divide into blocks of 32 inputs"),
        ("palette4-grouped", (60, 64), (0, 1), "60x64 does not divide into groups of 16 outputs"),
        ("palette4-grouped", (60, 64), (-1, -2), ""),
        ("palette4", (60, 60), (0, 1), ""),
        ("w8a8", (60, 60), (0, 1), ""),
        ("int8", (2, 1024), (0, 1), "2048 values, the quantiser takes more than 2048"),
    ],
)
def test_why_a_weight_is_left(precision, shape, axes, why):
    assert coreml_compress.refusal(coreml_compress.PRECISIONS[precision], shape, *axes) == why


def test_a_norm_whose_squares_half_precision_does_not_hold(tmp_path: Path):
    x = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(0)) * 300
    ports = (Port("x", (1, 16, 64), "float32", "input"),), (Port("y", (1, 16, 64), "float32", "output"),)
    target, variant = target_of("executorch:xnnpack")
    made = target.export(
        Component("student", TokenNorm(1, 64, 1e-6, "half"), *ports, (x,), "a norm"), variant, "fp16", tmp_path, {}
    )
    found = target.open(made.path, threads=1)({"x": x.numpy()})["y"]
    np.testing.assert_allclose(found, torch.nn.functional.layer_norm(x, (64,)).numpy(), atol=0.01)
    assert target.describe(made.path).placement["XnnpackBackend"] == 1


@pytest.mark.parametrize(
    ("target", "precision"), [("coreml", "palette8"), ("onnx", "int8-static"), ("onnx", "int4"), ("coreml", "w8a8")]
)
def test_exporting_twice_gives_the_same_bytes(made, target, precision, tmp_path: Path):
    artifact, _ = made(target, precision)
    found, variant = target_of(target)
    again = found.export(wide(), variant, precision, tmp_path, {})
    assert contents(again.files, tmp_path) == contents(artifact.files, artifact.path.parent)


@pytest.mark.parametrize(("target", "precision"), [("coreml", "w8a8"), ("onnx", "int8-static"), ("executorch", "int8-dynamic")])
def test_a_calibrated_precision_without_inputs_is_refused(target, precision, tmp_path: Path):
    found, variant = target_of(target)
    with pytest.raises(BadInput, match="--calibration"):
        found.export(uncalibrated(), variant, precision, tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_a_quantiser_that_takes_nothing_is_an_error(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(onnx_quantise, "_in_blocks", lambda model, how: model)
    with pytest.raises(RuntimeError, match="took none of the 3 layers"):
        target_of("onnx")[0].export(wide(), "cpu", "int4", tmp_path, {})


def test_coreml_that_compresses_nothing_is_an_error(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(coreml_compress, "_step", lambda model, *_: model)
    with pytest.raises(RuntimeError, match="no weight of 3 that it should take"):
        target_of("coreml")[0].export(wide(), "", "palette4", tmp_path, {})
