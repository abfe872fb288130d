from __future__ import annotations

import dataclasses
import json
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from snapgen_deploy.errors import BadInput, Refused
from snapgen_deploy.export.base import Artifact, Component, Port
from snapgen_deploy.export.coreml.target import CoreML
from snapgen_deploy.export.executorch.coreml import ExecuTorchCoreML
from tests.export.graph_cases import OPTIONS, arrays, component, contents, mixed, reference, running_sum, shuffle

pytest.importorskip("coremltools")
TARGET = CoreML()
SPEC = Path("Data/com.apple.CoreML/model.mlmodel")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return TARGET.export(mixed(), "", "fp16", tmp_path_factory.mktemp("fp16"), OPTIONS)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return TARGET.export(mixed(), "", "fp32", tmp_path_factory.mktemp("fp32"), {"deployment": "iOS17"})


def spec_of(artifact: Artifact):  # type: ignore[no-untyped-def]
    from coremltools.proto import Model_pb2

    return Model_pb2.Model.FromString((artifact.path / SPEC).read_bytes())


def test_package_structure(saved: Artifact) -> None:
    assert sorted(contents(saved.files, saved.path)) == [
        "Data/com.apple.CoreML/model.mlmodel",
        "Data/com.apple.CoreML/weights/weight.bin",
        "Manifest.json",
    ]
    assert list(saved.path.parent.iterdir()) == [saved.path]
    manifest = json.loads((saved.path / "Manifest.json").read_text())
    items = manifest["itemInfoEntries"]
    assert {uuid.UUID(key).version for key in items} == {5}
    assert items[manifest["rootModelIdentifier"]]["name"] == "model.mlmodel"
    for item in items.values():
        assert (saved.path / "Data" / item["path"]).exists()


def test_coremltools_takes_the_package(saved: Artifact) -> None:
    import coremltools

    model = coremltools.models.MLModel(str(saved.path), skip_model_load=True)
    assert model.input_description["latent"] == "about latent"
    assert model.get_spec() == spec_of(saved)


def test_names_documentation_and_version(saved: Artifact, full: Artifact) -> None:
    spec = spec_of(saved)
    about = spec.description
    assert [(f.name, f.shortDescription) for f in about.input] == [("latent", "about latent"), ("bias", "about bias")]
    assert [(f.name, f.shortDescription) for f in about.output] == [("velocity", "about velocity")]
    assert [list(f.type.multiArrayType.shape) for f in about.input] == [[1, 4, 4, 4], [1, 1, 16]]
    data = about.metadata
    assert (data.shortDescription, data.author, data.license) == ("about the student", "the tests", "Apache-2.0")
    assert data.versionString == "3"
    assert not any("date" in key for key in data.userDefined)
    assert spec.specificationVersion == 9  # iOS 18
    assert spec_of(full).specificationVersion == 8  # iOS 17


def test_ports_stay_float32_at_both_precisions(saved: Artifact, full: Artifact) -> None:
    from coremltools.proto import FeatureTypes_pb2

    for artifact in (saved, full):
        about = spec_of(artifact).description
        kinds = {f.type.multiArrayType.dataType for f in (*about.input, *about.output)}
        assert kinds == {FeatureTypes_pb2.ArrayFeatureType.FLOAT32}


def test_another_process_writes_the_same_bytes(saved: Artifact, elsewhere: Path) -> None:
    there = elsewhere / "student.mlpackage"
    other = contents(tuple(f for f in there.rglob("*") if f.is_file()), there)
    mine = contents(saved.files, saved.path)
    assert mine.keys() == other.keys()
    assert [name for name in mine if mine[name] != other[name]] == []


def test_description(saved: Artifact, full: Artifact) -> None:
    found = TARGET.describe(saved.path)
    assert found.bytes == sum(f.stat().st_size for f in saved.files)
    assert {name: found.ops[name] for name in ("conv", "linear", "matmul", "softmax", "relu")} == {
        "conv": 1, "linear": 2, "matmul": 2, "softmax": 1, "relu": 1,
    }  # fmt: skip
    assert "const" not in found.ops
    assert found.placement == {}
    assert sorted(found.weights.values()) == ["float16"] * len(found.weights)
    assert any("q_weight" in name for name in found.weights)
    assert any("iOS 18" in note for note in found.notes)
    wide = TARGET.describe(full.path)
    assert set(wide.weights.values()) == {"float32"}
    assert "cast" not in wide.ops
    assert wide.bytes > found.bytes


def test_description_of_compressed_weights(saved: Artifact, tmp_path: Path) -> None:
    import coremltools.optimize.coreml as compress
    from coremltools.models import MLModel

    settings = compress.OptimizationConfig(
        global_config=compress.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=64)
    )
    model = compress.palettize_weights(MLModel(str(saved.path), skip_model_load=True), settings)
    model.save(str(tmp_path / "small.mlpackage"))
    found = TARGET.describe(tmp_path / "small.mlpackage")
    packed = {name: kind for name, kind in found.weights.items() if kind == "palette4"}
    assert len(packed) == found.ops["constexpr_lut_to_dense"] > 0
    assert 4 < found.average_bits < 16


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_saved_graph_computes_what_torch_computes(saved: Artifact, full: Artifact, precision: str) -> None:
    run = TARGET.open((saved if precision == "fp16" else full).path, threads=1)
    case = mixed()
    results = run(arrays(case))
    assert list(results) == ["velocity"]
    got, expected = results["velocity"], reference(case)
    assert got.dtype == np.float32
    # fp16: weights and results are rounded, 2^-11 each, along two projections, a softmax and a product
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) <= {"fp16": 5e-3, "fp32": 1e-5}[precision]


class Gelu(nn.Module):
    """One of the two forms."""

    def __init__(self, approximate: str) -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(x, approximate=self.approximate)


@pytest.mark.parametrize("target", [CoreML(), ExecuTorchCoreML()])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_both_forms_of_gelu_stay_what_they_are(tmp_path: Path, target: CoreML | ExecuTorchCoreML, approximate: str) -> None:
    x = torch.linspace(-4, 4, 64).reshape(1, 8, 1, 8)
    ports = (Port("x", (1, 8, 1, 8), "float32", "input"),), (Port("y", (1, 8, 1, 8), "float32", "output"),)
    made = target.export(
        Component("student", Gelu(approximate), *ports, (x,), "GELU"), next(iter(target.variants), ""), "fp32", tmp_path, {}
    )
    found = target.open(made.path, threads=1)({"x": x.numpy()})["y"]
    np.testing.assert_allclose(found, nn.functional.gelu(x, approximate=approximate).numpy(), atol=1e-6)


def test_inputs_that_are_not_the_packages(saved: Artifact) -> None:
    run = TARGET.open(saved.path, threads=1)
    right = arrays(mixed())
    with pytest.raises(BadInput, match=r"got inputs \['latent'\], expected \['latent', 'bias'\]"):
        run({"latent": right["latent"]})
    with pytest.raises(BadInput, match=r"'bias' is float64 \[1, 1, 16\], expected float32"):
        run({**right, "bias": right["bias"].astype(np.float64)})
    with pytest.raises(BadInput, match=r"'bias' is float32 \[1, 16\], expected float32 \[1, 1, 16\]"):
        run({**right, "bias": right["bias"][0]})


def test_packages_run_on_every_system() -> None:
    assert TARGET.unavailable("") is None
    assert "no variants" in str(TARGET.unavailable("ane"))


def test_an_export_replaces_the_one_before(tmp_path: Path) -> None:
    first = TARGET.export(mixed(), "", "fp16", tmp_path, {})
    second = TARGET.export(running_sum(), "", "fp16", tmp_path, {})
    assert first.path == second.path
    assert list(TARGET.describe(second.path).ops) != []
    assert TARGET.describe(second.path).ops.get("conv", 0) == 0


def test_high_ranks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"student -> coreml: operation .* of rank 6"):
        TARGET.export(shuffle(), "", "fp16", tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_offered(tmp_path: Path) -> None:
    for variant, precision, options in (
        ("ane", "fp16", {}), ("", "int7", {}), ("", "fp16", {"deployment": "iOS12"}), ("", "fp16", {"units": "all"}),
    ):  # fmt: skip
        with pytest.raises(BadInput, match="coreml: "):
            TARGET.export(mixed(), variant, precision, tmp_path, options)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_the_library_is_one_line_with_its_cause(tmp_path: Path) -> None:
    class Unknown(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(RuntimeError, match=r"^student -> coreml: [^\n]+$") as caught:
        TARGET.export(component(Unknown(), {"x": (1, 4)}, ("y", (1, 4))), "", "fp16", tmp_path, {})
    assert caught.value.__cause__ is not None
    assert list(tmp_path.iterdir()) == []


def test_names_must_be_the_ports(tmp_path: Path) -> None:
    case = dataclasses.replace(mixed(), outputs=running_sum().outputs)
    with pytest.raises(RuntimeError, match="student -> coreml: outputs of the traced graph are"):
        TARGET.export(case, "", "fp16", tmp_path, {})


def test_what_is_no_package(tmp_path: Path) -> None:
    (tmp_path / SPEC).parent.mkdir(parents=True)
    with pytest.raises(BadInput, match="not a Core ML package"):
        TARGET.describe(tmp_path)
    (tmp_path / SPEC).write_bytes(b"\xff" * 64)
    with pytest.raises(BadInput, match="cannot be read"):
        TARGET.describe(tmp_path)
    (tmp_path / SPEC).write_bytes(b"")
    with pytest.raises(BadInput, match="expected an ML Program"):
        TARGET.describe(tmp_path)


def test_versions_and_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert set(TARGET.versions()) == {"torch", "coremltools"}
    TARGET.export(running_sum(), "", "fp16", tmp_path, {})
    assert capfd.readouterr() == ("", "")
