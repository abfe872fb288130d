"""Graphs of one network for several picture sizes, joined into files that hold each weight once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Artifact, Component, Joined, Port, Target
from snapgen_deploy.export.coreml.target import CoreML
from snapgen_deploy.export.executorch.coreml import ExecuTorchCoreML
from snapgen_deploy.export.executorch.target import ExecuTorch
from snapgen_deploy.export.lint import lint_package, package
from snapgen_deploy.export.mil.saved.errors import PackageError
from snapgen_deploy.export.onnx.target import Onnx

SIZES = {"8x8": (8, 8), "8x12": (8, 12), "4x8": (4, 8)}
TARGETS: dict[str, Target] = {
    "coreml": CoreML(),
    "executorch": ExecuTorch(),
    "executorch:coreml": ExecuTorchCoreML(),
    "onnx": Onnx(),
}
PRECISION = {"coreml": "fp16", "executorch": "fp32", "executorch:coreml": "fp16", "onnx": "fp32"}


class Net(nn.Module):
    """A projection of 64 channels, and a table that depends on the size, as positions do."""

    table: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.mix = nn.Conv2d(64, 64, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        generator.manual_seed(100 * height + width)
        self.register_buffer("table", torch.randn(1, 64, height, width, generator=generator))

    def forward(self, latent: Tensor) -> Tensor:
        mixed: Tensor = self.mix(latent) + self.table
        return mixed.relu()


def component(size: str) -> Component:
    shape = (1, 64, *SIZES[size])
    ports = Port("latent", shape, "float32", f"a latent of {size}"), Port("velocity", shape, "float32", "out")
    module = Net(*SIZES[size]).eval().requires_grad_(False)
    return Component("student", module, ports[:1], ports[1:], (torch.ones(shape),), "a step")


def reference(size: str, latent: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        out: np.ndarray = component(size).module(torch.from_numpy(latent)).numpy()
    return out


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Artifact]]:
    """Target -> every size exported by itself; made once."""
    made: dict[str, dict[str, Artifact]] = {}

    def of(name: str) -> dict[str, Artifact]:
        if name not in made:
            made[name] = {}
            for size in SIZES:
                directory = tmp_path_factory.mktemp(f"{name}-{size}")
                variant = next(iter(TARGETS[name].variants), "")
                made[name][size] = TARGETS[name].export(component(size), variant, PRECISION[name], directory, {})
        return made[name]

    return of


@pytest.fixture(scope="module")
def joined(parts, tmp_path_factory):
    made: dict[str, Joined] = {}

    def of(name: str) -> Joined:
        if name not in made:
            made[name] = TARGETS[name].join(parts(name), tmp_path_factory.mktemp(name))
        return made[name]

    return of


def files(found: Joined) -> set[Path]:
    return {f for artifact in found.artifacts.values() for f in artifact.files}


@pytest.mark.parametrize("name", TARGETS)
def test_every_size_gives_exactly_what_it_gave_alone(name, parts, joined):
    assert list(joined(name).artifacts) == list(SIZES)
    for size, artifact in joined(name).artifacts.items():
        latent = np.random.default_rng(3).standard_normal((1, 64, *SIZES[size])).astype(np.float32)
        alone = TARGETS[name].open(parts(name)[size].path, threads=1)({"latent": latent})["velocity"]
        got = TARGETS[name].open(artifact.path, threads=1, entry=artifact.entry)({"latent": latent})["velocity"]
        np.testing.assert_array_equal(got, alone)
        expected = reference(size, latent)
        assert np.abs(got - expected).max() <= (2e-2 if PRECISION[name] == "fp16" else 1e-5) * np.abs(expected).max()


@pytest.mark.parametrize("name", TARGETS)
def test_the_first_size_is_the_default_one(name, joined):
    first = next(iter(joined(name).artifacts.values()))
    latent = np.ones((1, 64, *SIZES["8x8"]), np.float32)
    named = TARGETS[name].open(first.path, threads=1, entry=first.entry)({"latent": latent})["velocity"]
    np.testing.assert_array_equal(TARGETS[name].open(first.path, threads=1)({"latent": latent})["velocity"], named)
    other = list(joined(name).artifacts.values())[1]
    with pytest.raises(BadInput, match="expected"):
        TARGETS[name].open(other.path, threads=1, entry=other.entry)({"latent": latent})


@pytest.mark.parametrize("name", TARGETS)
def test_weights_are_stored_once_and_tables_for_every_size(name, joined):
    """Bytes that occur twice would show: the weight's own bytes are searched for in all files."""
    found = joined(name)
    kind = np.float16 if PRECISION[name] == "fp16" else np.float32
    module = component("8x8").module
    assert isinstance(module, Net)
    weight = module.mix.weight.numpy().astype(kind).tobytes()
    content = [f.read_bytes() for f in sorted(files(found))]
    assert sum(data.count(weight) for data in content) == 1
    for size in SIZES:
        own = component(size).module
        assert isinstance(own, Net)
        spellings = {t.numpy().astype(kind).tobytes() for t in (own.table, own.table.permute(0, 2, 3, 1).contiguous())}
        assert sum(data.count(s) for data in content for s in spellings) == 1
    stored = 64 * 64 * np.dtype(kind).itemsize  # the bias may be too small to be worth a reference
    assert stored <= found.shared_bytes <= stored + 1024
    assert found.bytes == sum(map(len, content))
    assert found.separate_bytes - found.bytes >= (len(SIZES) - 1) * 64 * 64 * np.dtype(kind).itemsize - 2048


@pytest.mark.parametrize("name", TARGETS)
def test_a_graph_is_described_as_it_was_alone(name, parts, joined):
    assert list(joined(name).artifacts) == list(SIZES)
    for size, artifact in joined(name).artifacts.items():
        got, alone = (TARGETS[name].describe(a.path, a.entry) for a in (artifact, parts(name)[size]))
        assert (got.ops, got.placement, got.portable_ops, got.lint) == (
            alone.ops,
            alone.placement,
            alone.portable_ops,
            alone.lint,
        )
        assert sorted(got.weights.values()) == sorted(alone.weights.values())


@pytest.mark.parametrize("name", TARGETS)
def test_the_same_parts_give_the_same_bytes(name, parts, joined, tmp_path):
    again = TARGETS[name].join(parts(name), tmp_path)
    digests = [{f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files(j)} for j in (joined(name), again)]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(("name", "message"), [("coreml", "no function"), ("executorch", "methods"), ("onnx", "one graph")])
def test_a_graph_that_is_not_there_is_named(name, message, joined):
    path = next(iter(joined(name).artifacts.values())).path
    for act in (
        lambda: TARGETS[name].open(path, threads=1, entry="size_9x9"),
        lambda: TARGETS[name].describe(path, "size_9x9"),
    ):
        with pytest.raises(BadInput, match=message if name != "executorch" else "size_9x9"):
            act()


def test_executorch_keeps_one_delegate_a_size_and_nothing_outside(joined):
    for artifact in joined("executorch").artifacts.values():
        found = ExecuTorch().describe(artifact.path, artifact.entry)
        assert found.placement == {"XnnpackBackend": 1, "portable": 0}
    assert [a.entry for a in joined("executorch").artifacts.values()] == ["", "size_8x12", "size_4x8"]


def test_coreml_names_a_function_for_every_size(joined):
    path = next(iter(joined("coreml").artifacts.values())).path
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model.FromString((path / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
    assert spec.specificationVersion == 9
    assert [f.name for f in spec.description.functions] == ["size_8x8", "size_8x12", "size_4x8"]
    assert spec.description.defaultFunctionName == "size_8x8"
    assert spec.description.functions[1].input[0].shortDescription == "a latent of 8x12"
    assert len(spec.description.input) == 0
    assert spec.description.metadata.shortDescription == "a step"
    with pytest.raises(PackageError, match="no function"):
        from snapgen_deploy.export.mil import open_package

        open_package(path, function="main")


def test_lint_looks_at_the_named_function_only(joined, monkeypatch):
    path = next(iter(joined("coreml").artifacts.values())).path
    seen: list[list[str]] = []
    spy = SimpleNamespace(apply=lambda subject: seen.append(sorted(subject.package.functions)))
    monkeypatch.setattr(package, "RULES", {"spy": spy})
    assert lint_package(path, function="size_4x8") == lint_package(path) == ()
    assert seen == [["size_4x8"], sorted(["size_8x8", "size_8x12", "size_4x8"])]


def test_coreml_is_what_coremltools_makes_of_the_same_packages(parts, joined, tmp_path):
    """Structure of the specification and content of the weight file, against `save_multifunction`."""
    import coremltools as ct
    from coremltools.proto import Model_pb2

    descriptor = ct.utils.MultiFunctionDescriptor()
    for size, part in parts("coreml").items():
        descriptor.add_function(str(part.path), "main", f"size_{size}")
    descriptor.default_function_name = "size_8x8"
    theirs = tmp_path / "theirs.mlpackage"
    ct.utils.save_multifunction(descriptor, str(theirs))
    ours = next(iter(joined("coreml").artifacts.values())).path
    specs = [Model_pb2.Model.FromString((p / "Data/com.apple.CoreML/model.mlmodel").read_bytes()) for p in (ours, theirs)]
    assert specs[0].specificationVersion == specs[1].specificationVersion
    assert specs[0].description.defaultFunctionName == specs[1].description.defaultFunctionName
    shapes = [[(f.name, f.input[0].type.SerializeToString()) for f in s.description.functions] for s in specs]
    assert shapes[0] == shapes[1]
    assert {f.opset for s in specs for f in s.mlProgram.functions.values()} == {"CoreML8"}
    sizes = [(p / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size for p in (ours, theirs)]
    assert sizes[0] == sizes[1]
    loaded = ct.models.MLModel(str(ours), skip_model_load=True, function_name="size_8x12")
    assert loaded.get_spec() == specs[0]


def test_a_weight_file_is_written_as_coremltools_writes_it(parts, tmp_path):
    from snapgen_deploy.export.coreml import functions as coreml_functions
    from snapgen_deploy.export.coreml.target import DATA, read_spec

    part = parts("coreml")["8x8"].path
    coreml_functions.join({"size_8x8": (read_spec(part), part / DATA)}, tmp_path / "weight.bin")
    assert (tmp_path / "weight.bin").read_bytes() == (part / DATA / "weights/weight.bin").read_bytes()


def test_coreml_below_ios_18_is_refused(tmp_path):
    made = {}
    for size in ("8x8", "4x8"):
        (tmp_path / size).mkdir()
        made[size] = CoreML().export(component(size), "", "fp16", tmp_path / size, {"deployment": "iOS17"})
    with pytest.raises(BadInput, match="iOS 18"):
        CoreML().join(made, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4x8", "8x8"]


def test_onnx_models_refer_to_one_file_at_the_same_place(joined):
    places = []
    for artifact in joined("onnx").artifacts.values():
        onnx.checker.check_model(str(artifact.path), full_check=True)
        model = onnx.load(str(artifact.path), load_external_data=False)
        entries = [{e.key: e.value for e in t.external_data} for t in model.graph.initializer if t.external_data]
        places.append(sorted((e["location"], int(e["offset"]), int(e["length"])) for e in entries))
        assert len(model.graph.initializer) > len(entries), "the table stays inside"
    assert places[0] == places[1] == places[2]
    assert {location for location, _, _ in places[0]} == {"student.onnx.data"}
    assert all(offset % 64 == 0 for _, offset, _ in places[0])


def test_onnx_takes_parts_whose_weights_lie_outside(parts, tmp_path):
    """What a student beyond 2 GB looks like; the result is the same."""
    made = {}
    for size in ("8x8", "4x8"):
        (tmp_path / size).mkdir()
        made[size] = Onnx().export(component(size), "cpu", "fp32", tmp_path / size, {"external_data_bytes": "100"})
        assert len(made[size].files) == 2
    found = Onnx().join(made, tmp_path)
    latent = np.ones((1, 64, 4, 8), np.float32)
    shutil.rmtree(tmp_path / "8x8")
    shutil.rmtree(tmp_path / "4x8")
    got = Onnx().open(found.artifacts["4x8"].path, threads=1)({"latent": latent})["velocity"]
    assert np.abs(got - reference("4x8", latent)).max() <= 1e-5


def test_the_server_layout_keeps_optimums_names_for_the_first_size(parts, tmp_path):
    pytest.importorskip("optimum.onnxruntime")
    from snapgen_deploy.export.base import Description
    from snapgen_deploy.export.onnx.optimum_layout import arrange, load, renamed
    from snapgen_deploy.job.records import Exported
    from snapgen_deploy.job.sizes import relocated, whole
    from tests.export.onnx_cases import CONFIG

    found = Onnx().join(parts("onnx"), tmp_path)
    nothing = Description(0, {})
    first, *others = (Exported(a, nothing, {}, 0) for a in found.artifacts.values())
    part = Exported(first.artifact, nothing, {}, 0, others=dict(zip(list(SIZES)[1:], others, strict=True)))
    moved = arrange(tmp_path, {"student": whole(part)}, CONFIG, {})["student"]
    there = relocated(part, moved, renamed)
    folder = tmp_path / "transformer"
    assert {p.name for p in folder.iterdir()} == {
        "model.onnx", "model-8x12.onnx", "model-4x8.onnx", "model.onnx_data", "config.json",
    }  # fmt: skip
    assert set(there.at("4x8").artifact.files) == {folder / n for n in ("model-4x8.onnx", "model.onnx_data", "config.json")}
    for size in SIZES:
        latent = np.ones((1, 64, *SIZES[size]), np.float32)
        got = Onnx().open(there.at(size).artifact.path, threads=1)({"latent": latent})["velocity"]
        assert np.abs(got - reference(size, latent)).max() <= 1e-5
    through = load(tmp_path, "transformer")(latent=torch.ones(1, 64, 8, 8))["velocity"].numpy()
    assert np.abs(through - reference("8x8", np.ones((1, 64, 8, 8), np.float32))).max() <= 1e-5


def test_executorch_ports_are_kept_for_every_size(joined):
    from executorch.runtime import Runtime

    path = next(iter(joined("executorch").artifacts.values())).path
    program = Runtime.get().load_program(path)
    assert program.method_names == {
        "forward", "ports", "size_8x12", "ports_size_8x12", "size_4x8", "ports_size_4x8",
    }  # fmt: skip
    told = json.loads(program.load_method("ports_size_8x12").execute([])[0])
    assert told["inputs"][0]["shape"] == [1, 64, 8, 12]


def test_executorch_refuses_a_program_that_was_joined_before(joined, tmp_path):
    artifact = joined("executorch").artifacts["8x8"]
    with pytest.raises(BadInput, match="got methods"):
        ExecuTorch().join({"8x8": artifact, "4x8": artifact}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_executorch_refuses_one_name_for_different_data(parts, tmp_path):
    """XNNPACK names data by their digest; a program whose data were changed under the same name must not be joined silently."""
    weight = component("8x8").module.get_parameter("mix.weight").numpy().tobytes()
    part = parts("executorch")["4x8"]
    broken = tmp_path / "4x8" / part.path.name
    broken.parent.mkdir()
    broken.write_bytes(part.path.read_bytes().replace(weight, bytes(len(weight))))
    damaged = Artifact(part.target, part.role, broken, (broken,))
    with pytest.raises(BadInput, match="not those of the other sizes"):
        ExecuTorch().join({"8x8": parts("executorch")["8x8"], "4x8": damaged}, tmp_path)
