from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Artifact, Component, Port
from snapgen_deploy.export.onnx import rules
from snapgen_deploy.export.onnx.target import Onnx
from snapgen_deploy.sparse.unet_image import group_norm
from tests.another import in_another_process
from tests.export import graph_cases
from tests.export.conftest import Exported
from tests.export.onnx_cases import Double, decoder, double, rewritten, student, text_encoder

onnx = pytest.importorskip("onnx")
TARGET = Onnx()
LIMIT = 1e-5


def export(component: Component, directory: Path, options: Mapping[str, str] | None = None) -> Artifact:
    return TARGET.export(component, "cpu", "fp32", directory, options or {})


def arrays(component: Component) -> dict[str, np.ndarray]:
    return {p.name: t.numpy() for p, t in zip(component.inputs, component.example, strict=True)}


def error(component: Component, path: Path) -> float:
    """Largest difference of the saved file from the module, relative to the largest output."""
    got = TARGET.open(path, threads=1)(arrays(component))
    with torch.no_grad():
        expected = component.module(*component.example).numpy()
    assert list(got) == [p.name for p in component.outputs]
    values = got[component.outputs[0].name]
    assert values.shape == expected.shape
    return float(np.abs(values - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("make", [student, rewritten, decoder, text_encoder])
def test_a_saved_component_computes_what_its_module_does(make, exported):
    component, artifact = make(), exported(make, {})
    folder = artifact.path.parent
    assert artifact.path == folder / f"{component.role}.onnx"
    assert artifact.files == (artifact.path,)
    assert sorted(p.name for p in folder.iterdir()) == [artifact.path.name]
    assert error(component, artifact.path) <= LIMIT


@pytest.mark.parametrize("name", ["embedding", "linear", "add"])
def test_a_port_may_be_called_like_a_value_inside(name, tmp_path):
    component = text_encoder()
    named = dataclasses.replace(component, outputs=(dataclasses.replace(component.outputs[0], name=name),))
    assert error(named, export(named, tmp_path).path) <= LIMIT


def test_file_names_documents_and_types_its_ports(tmp_path):
    component = text_encoder()
    model = onnx.load(str(export(component, tmp_path).path))
    for values, ports in ((model.graph.input, component.inputs), (model.graph.output, component.outputs)):
        assert [v.name for v in values] == [p.name for p in ports]
        assert [v.doc_string for v in values] == [p.doc for p in ports]
        assert [tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values] == [p.shape for p in ports]
    assert model.opset_import[0].version >= 20
    assert model.doc_string == component.doc


def operators(file: bytes) -> Counter[str]:
    return Counter(n.op_type for n in onnx.load_from_string(file).graph.node)


@pytest.mark.parametrize("make", [student, rewritten, decoder, text_encoder])
def test_rules_that_are_left_out_find_nothing(make, exported, tmp_path, monkeypatch):
    from onnxscript import rewriter
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    from snapgen_deploy.export.onnx import target as ours

    every = rewriter._DEFAULT_REWRITE_RULES
    with ours.rules_of_linear_time():
        assert len(rewriter._DEFAULT_REWRITE_RULES) == len(every) - 1
        library = ONNXRegistry.from_torchlib(opset_version=20)
        expected = ONNXRegistry.from_torchlib(opset_version=20).functions
        assert library.functions == expected
        library.functions.popitem()[1].clear()  # somebody's own functions stay in the registry that they were added to
        assert ONNXRegistry.from_torchlib(opset_version=20).functions == expected
    assert rewriter._DEFAULT_REWRITE_RULES is every
    quick = exported(make, {}).path.read_bytes()
    if make is rewritten:  # as decomposing writes it, but that it leaves two reshapes of nothing
        spared = operators(quick)
        monkeypatch.setattr(rules, "_where_needed", lambda decompose: decompose)
        quick = export(make(), tmp_path).path.read_bytes()
        expected = operators(quick)
        assert expected - spared == {"Reshape": 2}
        assert spared - expected == {}
    monkeypatch.setattr(ours, "rules_of_linear_time", contextlib.nullcontext)
    assert export(make(), tmp_path).path.read_bytes() == quick


class Changing(nn.Module):
    """It writes into a copy of its input, keeps a whole slice, and has an operator that torchlib lacks."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y[:, 1:].add_(x[:, 1:])
        return torch.special.entr(y.narrow(1, 0, y.shape[1]).sigmoid()[:, :3])


def test_what_has_to_be_decomposed_is(tmp_path):
    component = dataclasses.replace(double(), module=Changing(), example=(torch.randn(2, 5),))
    shapes = {"inputs": (2, 5), "outputs": (2, 3)}
    ports = {kind: (dataclasses.replace(getattr(component, kind)[0], shape=shape),) for kind, shape in shapes.items()}
    component = dataclasses.replace(component, **ports)
    assert error(component, export(component, tmp_path).path) <= LIMIT


def test_licence_and_author_are_kept_in_the_file(tmp_path):
    artifact = export(double(), tmp_path, {"license": "Apache-2.0", "author": "shapes", "folders": "diffusers"})
    stated = {p.key: p.value for p in onnx.load(str(artifact.path)).metadata_props}
    assert stated == {"snapgen_graph": "as exported", "license": "Apache-2.0", "author": "shapes"}


@pytest.mark.parametrize("options", [{}, {"optimize": "optimum"}, {"external_data_bytes": "0"}])
def test_file_holds_no_path_and_no_stack_trace(options, tmp_path):
    artifact = export(double(), tmp_path, options)
    here = [str(tmp_path), str(Path(__file__).parent), sys.prefix, os.getcwd(), str(Path.home()), ".py", "forward("]
    for file in artifact.files:
        content = file.read_bytes()
        assert not [text for text in here if text.encode() in content]
    model = onnx.load(str(artifact.path))
    assert {p.key for p in model.metadata_props} == {"snapgen_graph"}
    assert not [n.name for n in model.graph.node if n.doc_string or n.metadata_props]
    assert not [w.name for w in model.graph.initializer if w.doc_string or w.metadata_props]
    assert not [v.name for v in model.graph.value_info if v.doc_string or v.metadata_props]


def digests(exported: Exported) -> list[str]:
    """Name and SHA-256 of every file of three exports that take different ways."""
    found = []
    for make, options in ((student, {"optimize": "optimum"}), (decoder, {"external_data_bytes": "0"}), (text_encoder, {})):
        files = exported(make, options).files
        found += [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]
    return found


def digests_of(directory: Path) -> list[str]:
    """The same of exports into `directory`."""
    return digests(lambda make, options: export(make(), directory, options))


def test_two_processes_write_the_same_bytes_and_print_nothing(exported, tmp_path):
    here = digests(exported)
    assert len(here) == 5
    (tmp_path / "files").mkdir()
    assert in_another_process(digests_of, tmp_path / "files", printed=tmp_path / "printed") == here
    assert (tmp_path / "printed").read_text() == ""


@pytest.mark.parametrize("optimize", ["none", "optimum"])
def test_heavy_weights_go_to_one_file_beside_the_model(optimize, tmp_path):
    component = decoder()
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for directory in (inside, outside):
        directory.mkdir()
    export(component, inside, {"optimize": optimize})
    artifact = export(component, outside, {"optimize": optimize, "external_data_bytes": "2000"})
    assert outside / "decoder.onnx.data" in artifact.files
    assert artifact.path.stat().st_size < (inside / "decoder.onnx").stat().st_size
    moved = tmp_path / "moved"
    outside.rename(moved)  # the model names its data relative to itself
    assert error(component, moved / "decoder.onnx") <= LIMIT
    described = TARGET.describe(moved / "decoder.onnx")
    assert described.bytes == sum(p.stat().st_size for p in moved.iterdir() if p.suffix in (".onnx", ".data"))
    assert "external data files: 1" in described.notes


def test_weights_below_the_limit_stay_inside(tmp_path):
    assert len(export(double(), tmp_path, {"external_data_bytes": "68"}).files) == 1  # 16 floats and a factor: 68 bytes
    assert len(export(double(), tmp_path, {"external_data_bytes": "67"}).files) == 2


def test_describe_reads_what_is_in_the_file(tmp_path):
    described = TARGET.describe(export(double(), tmp_path).path)
    assert described.ops == {"MatMul": 1, "Mul": 1}
    assert described.placement == {"CPUExecutionProvider": sum(described.placement.values())}
    assert described.weights["weight"] == "float32"
    assert described.bytes == (tmp_path / "decoder.onnx").stat().st_size
    assert "opset: ai.onnx 20" in described.notes
    assert "graph: as exported" in described.notes


def test_optimum_optimises_the_student_and_says_so(exported):
    artifact = exported(student, {"optimize": "optimum"})
    assert error(student(), artifact.path) <= LIMIT
    described = TARGET.describe(artifact.path)
    assert any(note.startswith("graph: optimised by optimum-onnx") for note in described.notes)
    assert described.ops["com.microsoft.FusedMatMul"] == 10  # q k^T with its scale, one per attention matrix
    assert artifact.path.parent / "student.ort_config.json" in artifact.files


def test_a_wrong_optimised_graph_is_refused_and_the_plain_one_kept(tmp_path, monkeypatch):
    from snapgen_deploy.export.onnx import optimum_exporter

    real = optimum_exporter._optimised

    def spoiled(config, component, plain, settings):
        path = real(config, component, plain, settings)
        model = onnx.load(str(path))
        weight = next(w for w in model.graph.initializer if list(w.dims) == [4, 4])
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.001, weight.name))
        onnx.save(model, str(path))
        return path

    monkeypatch.setattr(optimum_exporter, "_optimised", spoiled)
    component = double()
    artifact = export(component, tmp_path, {"optimize": "optimum"})
    assert artifact.files == (artifact.path,)
    assert error(component, artifact.path) <= LIMIT
    assert any("was refused: The maximum absolute difference" in note for note in TARGET.describe(artifact.path).notes)


def test_optimum_refuses_a_graph_that_is_not_the_module(tmp_path, monkeypatch):
    """Neither graph matches: the export fails instead of warning."""
    component = double()
    monkeypatch.setattr("snapgen_deploy.export.onnx.optimum_exporter.Named.forward", lambda self, latent: latent * float("nan"))
    with pytest.raises(RuntimeError, match="decoder -> onnx:cpu: The maximum absolute difference"):
        export(component, tmp_path, {"optimize": "optimum"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {}, r"got inputs \[\], expected \['latent'\]"),
        (lambda x: {"latent": x, "extra": x}, r"got inputs \['extra', 'latent'\]"),
        (lambda x: {"latent": x[:1]}, r"'latent' is float32 \[1, 4\], expected float32 \[2, 4\]"),
        (lambda x: {"latent": x.astype(np.float64)}, r"'latent' is float64 \[2, 4\], expected float32"),
    ],
)
def test_wrong_inputs_are_named(change, message, tmp_path):
    component = double()
    run = TARGET.open(export(component, tmp_path).path, threads=1)
    with pytest.raises(BadInput, match=message):
        run(change(component.example[0].numpy()))


@pytest.mark.parametrize(
    ("variant", "precision", "options", "message"),
    [
        ("cuda", "fp32", {}, "got variant 'cuda'"),
        ("cpu", "fp8", {}, "precision 'fp8'"),
        ("cpu", "fp32", {"optimise": "optimum"}, "unknown option 'optimise'; known are optimize"),
        ("cpu", "fp32", {"optimize": "O9"}, "optimize='O9'; expected none or optimum"),
        ("cpu", "fp32", {"folders": "tree"}, "folders='tree'; expected flat or diffusers"),
        ("cpu", "fp32", {"opset": "19"}, "opset='19'; expected a whole number, at least 20"),
        ("cpu", "fp32", {"external_data_bytes": "-1"}, "external_data_bytes='-1'"),
    ],
)
def test_what_is_not_offered_is_refused(variant, precision, options, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        TARGET.export(double(), variant, precision, tmp_path, options)
    assert list(tmp_path.iterdir()) == []


class Unexportable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if bool(x.sum() > 0) else x  # data-dependent control flow


def test_a_network_that_torch_cannot_export_gives_one_line_and_no_file(tmp_path):
    component = dataclasses.replace(double(), module=Unexportable())
    with pytest.raises(RuntimeError, match=r"^decoder -> onnx:cpu: [^\n]+$"):
        export(component, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_ports_that_are_not_the_networks_are_refused(tmp_path):
    wrong = dataclasses.replace(double(), outputs=(Port("picture", (2, 5), "float32", ""),))
    with pytest.raises(RuntimeError, match=r"outputs of the exported graph are .*\(2, 4\).*expected .*\(2, 5\)"):
        export(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"", b"not a model", b"\x08\x07"])
def test_a_file_that_is_no_model_is_named(content, tmp_path):
    path = tmp_path / "decoder.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=r"decoder\.onnx"):
        TARGET.open(path, threads=1)
    with pytest.raises(BadInput, match=r"decoder\.onnx"):
        TARGET.describe(path)


def test_missing_data_file_is_an_error_not_zeros(tmp_path):
    artifact = export(decoder(), tmp_path, {"external_data_bytes": "0"})
    (tmp_path / "decoder.onnx.data").unlink()
    with pytest.raises(BadInput, match=r"decoder\.onnx"):
        TARGET.open(artifact.path, threads=1)


def test_a_session_that_waits_leaves_the_processors_to_others(tmp_path):
    from snapgen_deploy.export.onnx.target import _session

    options = _session(export(double(), tmp_path).path, 2, TARGET.providers).get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_onnxruntime_keeps_what_it_opens_to_itself(tmp_path):
    path = export(double(), tmp_path).path
    home = tmp_path / "home"
    home.mkdir()
    silent = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME"}  # would keep it quiet, or elsewhere
    environment = {k: v for k, v in os.environ.items() if k not in silent}
    environment |= {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    code = "from pathlib import Path; from snapgen_deploy.export.onnx.target import Onnx; "
    code += f"Onnx().open(Path({str(path)!r}), threads=1)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert list(home.rglob("*onnxruntime*")) == []  # where its telemetry keeps a device's name and what it could not send yet


def test_availability_and_versions():
    assert TARGET.unavailable("cpu") is None
    assert TARGET.unavailable("qnn") == "onnx has no variant 'qnn'; it has cpu"
    assert set(TARGET.versions()) >= {"torch", "onnx", "onnxruntime", "optimum", "optimum-onnx"}


def test_module_is_left_as_it_was(tmp_path):
    component = double()
    assert isinstance(component.module, Double)
    before = hashlib.sha256(component.module.weight.detach().numpy().tobytes()).hexdigest()
    export(component, tmp_path, {"optimize": "optimum"})
    assert hashlib.sha256(component.module.weight.detach().numpy().tobytes()).hexdigest() == before
    assert component.module(torch.ones(2, 4)).shape == (2, 4)


class Squares(nn.Module):
    """Overflows half precision on the way to a result that does not."""

    def forward(self, latent: Tensor) -> Tensor:
        """(1, 8, 8) -> (1, 8, 8)."""
        wide = latent * 1000
        return latent / (wide * wide).mean().sqrt()


@pytest.mark.parametrize(("precision", "data"), [("fp16", "0"), ("fp16", str(2**30)), ("fp32", "0")])
def test_what_would_overflow_in_half_precision_is_told_though_this_computer_computes_in_single(tmp_path, precision, data):
    ports = [(Port(name, (1, 8, 8), "float32", ""),) for name in ("latent", "picture")]
    x = torch.randn(1, 8, 8).clamp(-2, 2)
    x[0, 3, 3] = 3.0
    part = Component("decoder", Squares(), *ports, (x,), "d")
    runner = TARGET.open(TARGET.export(part, "cpu", precision, tmp_path, {"external_data_bytes": data}).path, threads=1)
    calls = [{"latent": (x * scale).numpy()} for scale in (0.01, 1.0, 0.02)]
    results = [runner(call)["picture"] for call in calls]
    expected = Squares()(x).numpy()
    assert np.linalg.norm(results[1] - expected) / np.linalg.norm(expected) < 1e-2
    found = runner.headroom()
    if precision == "fp32":
        assert found is None
        return
    assert found.limit == 65504.0
    assert found.largest == pytest.approx(9e6, rel=1e-2)
    assert found.tightest[0].startswith("Mul")
    np.testing.assert_array_equal(runner(calls[1])["picture"], results[1])  # and it can still run


def test_values_of_onnxruntimes_own_operators_are_looked_at(tmp_path):
    from onnx import TensorProto, helper
    from onnxruntime import SessionOptions

    from snapgen_deploy.export.onnx.headroom import measure

    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=TensorProto.FLOAT16),
        helper.make_node("FusedMatMul", ["narrow", "narrow"], ["scores"], domain="com.microsoft", transB=1, alpha=1000.0),
        helper.make_node("Softmax", ["scores"], ["shares"]),
        helper.make_node("Cast", ["shares"], ["y"], to=TensorProto.FLOAT),
    ]
    ports = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 4])] for name in ("x", "y")]
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", *ports), opset_imports=imports, ir_version=10)
    onnx.save(model, str(tmp_path / "scores.onnx"))
    found = measure(tmp_path / "scores.onnx", [{"x": np.full((1, 4, 4), 10, np.float32)}], SessionOptions())
    assert found is not None
    assert found.largest > 65504
    assert found.tightest[0].startswith("FusedMatMul scores")


@pytest.mark.parametrize(("by_tiles", "error"), [(True, (0.0, 4e-6)), (False, (2e-5, 1e-3))])
def test_a_norm_of_many_equal_numbers_is_exact_by_tiles_only(
    tmp_path: Path, by_tiles: bool, error: tuple[float, float]
) -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 8)
    case = graph_cases.component(
        group_norm(norm, native=True) if by_tiles else norm, {"x": (1, 8, 256, 256)}, ("y", (1, 8, 256, 256))
    )
    x = case.example[0]
    x[..., 128:] = 1.5 + torch.randn(1, 8, 1, 1)  # an empty half, whose numbers are all alike
    expected = nn.functional.group_norm(x.double(), 2).numpy()
    made = TARGET.export(case, "cpu", "fp32", tmp_path, {})
    got = TARGET.open(made.path, threads=1)(graph_cases.arrays(case))["y"]
    low, high = error
    assert low <= np.linalg.norm(got - expected) / np.linalg.norm(expected) < high


def test_a_norm_of_small_groups_is_one_operation(tmp_path: Path) -> None:
    for size, count in ((64, 1), (512, 0)):
        shape = (1, 4, size, size)
        case = graph_cases.component(group_norm(nn.GroupNorm(2, 4), native=True), {"x": shape}, ("y", shape))
        (folder := tmp_path / str(size)).mkdir()
        made = TARGET.export(case, "cpu", "fp32", folder, {})
        assert TARGET.describe(made.path).ops.get("InstanceNormalization", 0) == count
