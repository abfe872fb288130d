"""Graphs as the Hexagon NPU takes them; with the extra installed also its compiler and its emulation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from snapgen_deploy.check.gates import relative_error
from snapgen_deploy.check.layers import first_wrong
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.errors import BadInput, GateFailed
from snapgen_deploy.export.base import Arrays, Artifact, Component
from snapgen_deploy.export.onnx.probe import OnnxProbe, run_on_cpu
from snapgen_deploy.export.onnx.qdq import in_floats
from snapgen_deploy.export.qnn import graph as qnn_graph
from snapgen_deploy.export.qnn import session as qnn_session
from snapgen_deploy.export.qnn.target import OnnxQnn, chip_of, compiled_graph, serve
from snapgen_deploy.export.registry import spec_of
from snapgen_deploy.models.presets import shapes
from snapgen_deploy.plan.make import make_plan
from snapgen_deploy.system.child import ChildDied
from tests.export.graph_cases import arrays, component, reference
from tests.export.quantise_cases import uncalibrated, wide

MISSING = OnnxQnn().unavailable("qnn")
with_extra = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
CHIP = {"soc_model": "64", "htp_arch": "73"}  # Snapdragon 7 Gen 3: no fp16
FLAGSHIP = {"soc_model": "69", "htp_arch": "79"}


class Normed(nn.Module):
    """A norm with reciprocals, a 1x1 convolution, and nearest upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        inverse = x.abs().amax(1, keepdim=True).reciprocal()
        y = self.conv(x * inverse)
        y = y * (y * y).mean(1, keepdim=True).add(1e-6).rsqrt()
        return torch.nn.functional.interpolate(y, scale_factor=2.0, mode="nearest")


class Mixing(nn.Module):
    """An einsum that stays one operator, which the NPU does not take."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bkhc,bchq->bkhq", x.transpose(1, 3), x).tanh()


def normed() -> Component:
    made = component(Normed(), {"latent": (1, 8, 4, 4)}, ("velocity", (1, 8, 8, 8)))
    drawn = torch.randn((4, 8, 4, 4), generator=torch.Generator().manual_seed(3))
    rows = [{"latent": row[None].numpy()} for row in drawn]
    return dataclasses.replace(made, example=(drawn[:1],), calibration=lambda: iter(rows))


def with_reciprocals(path: Path) -> Path:
    """1/x three ways: a factor on the right, on the left, and an output of its own."""
    nodes = [
        helper.make_node("Reciprocal", ["x"], ["r"], "inverting"),
        helper.make_node("Mul", ["x", "r"], ["a"], "right"),
        helper.make_node("Mul", ["r", "x2"], ["b"], "left"),
        helper.make_node("Add", ["a", "b"], ["y"], "adding"),
        helper.make_node("Reciprocal", ["y"], ["z"], "again"),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in ("x", "x2")]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in ("y", "z")]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), str(path))
    return path


def test_quotients_are_what_products_with_reciprocals_were(tmp_path: Path) -> None:
    model = onnx.load(str(with_reciprocals(tmp_path / "before.onnx")))
    qnn_graph.divide(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(tmp_path / "after.onnx"))
    assert [n.op_type for n in model.graph.node] == ["Div", "Div", "Add", "Div"]
    rng = np.random.default_rng(0)
    given = {n: rng.uniform(0.5, 4, (2, 3)).astype(np.float32) for n in ("x", "x2")}
    before, after = (run_on_cpu(tmp_path / f"{n}.onnx", given) for n in ("before", "after"))
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, rtol=1e-6)


def test_what_the_provider_prints_of_refused_nodes_is_read() -> None:
    line = (
        "[E:onnxruntime:, x.cc:1 Get] Unsupported nodes in QNN EP: { name: node_b, type: Einsum }{ name: node_a, type: Gather }"
    )
    assert qnn_session.refused(f"noise\n{line}\n{line}") == [("node_a", "Gather"), ("node_b", "Einsum")]
    assert qnn_session.refused("nothing of that kind { name: a, type: B }") == []


def test_a_graph_in_floats_is_the_quantised_one_without_its_activations_rounded(tmp_path: Path) -> None:
    made = normed()
    plain, quantised = tmp_path / "plain.onnx", tmp_path / "quantised.onnx"
    with torch.no_grad():
        program = torch.onnx.export(
            made.module, made.example, dynamo=True, opset_version=20, verbose=False, input_names=["latent"],
            output_names=["velocity"],
        )  # fmt: skip
    assert program is not None
    program.save(str(plain))
    model = onnx.load(str(plain))
    qnn_graph.divide(model)
    onnx.save(model, str(plain))
    qnn_graph.quantise(plain, made, quantised)
    floats = in_floats(onnx.load(str(quantised)))
    onnx.save(floats, str(tmp_path / "floats.onnx"))
    kinds = [n.op_type for n in floats.graph.node]
    assert "QuantizeLinear" not in kinds
    x = arrays(made)
    exact, through = (run_on_cpu(tmp_path / f"{n}.onnx", x)["velocity"] for n in ("floats", "quantised"))
    assert relative_error(exact, reference(made)) < 0.02  # weights are 8 bits in both
    assert 0 < relative_error(through, exact) < 0.005


def test_bad_requests_are_one_line(tmp_path: Path) -> None:
    target = OnnxQnn()
    for variant, precision, options, match in (
        ("qnn", "fp32", CHIP, "offered are qnn and fp16, w8a16"),
        ("qnn", "fp16", {"htp_arch": "73"}, "option soc_model=''; expected a whole number"),
        ("qnn", "fp16", CHIP | {"soc": "1"}, "unknown option 'soc'"),
    ):
        with pytest.raises(BadInput, match=match):
            target.export(wide(), variant, precision, tmp_path, options)
    parts = {s: Artifact("onnx:qnn", "student", tmp_path / s, ()) for s in ("8x8", "16x16")}
    with pytest.raises(BadInput, match="2 picture sizes in one file"):
        target.join(parts, tmp_path)
    plain = with_reciprocals(tmp_path / "plain.onnx")
    with pytest.raises(BadInput, match=r"plain.onnx: not a context that `export --target onnx:qnn` wrote"):
        target.open(plain, threads=1)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["plain.onnx"]


def test_without_the_extra_the_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "onnx:qnn needs an extra: pip install 'snapgen-deploy[qnn]'"
    monkeypatch.setattr("snapgen_deploy.plan.targets.missing_extra", lambda key: reason if key == "onnx:qnn" else None)
    profile, config = load_profile("android-mid"), shapes()
    plan = make_plan(config, profile)
    assert [t.key for t in plan.targets] == ["executorch:xnnpack", "onnx:cpu"]
    assert plan.reasons[-1] == f"onnx:qnn left out: {reason}"
    assert make_plan(config, profile, targets=["onnx"]).targets[0].key == "onnx:cpu"
    with pytest.raises(BadInput, match=r"target onnx:qnn cannot be exported: .*pip install 'snapgen-deploy\[qnn\]'") as caught:
        make_plan(config, profile, targets=["onnx:qnn"])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("device", ["android-mid", "galaxy-s25u", "galaxy-s22u"])
def test_with_the_extra_a_snapdragon_comes_first_and_the_portable_choice_stays(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapgen_deploy.plan.targets.missing_extra", lambda key: None)
    profile = load_profile(device)
    plan = make_plan(shapes(), profile)
    first = plan.targets[0]
    assert [t.key for t in plan.targets] == ["onnx:qnn", "executorch:xnnpack", "onnx:cpu"]
    assert first.layout == "channels"
    assert first.precision in spec_of("onnx:qnn").precisions
    assert dict(first.options) == {n: f"{profile.figures[n].value:g}" for n in ("soc_model", "htp_arch")}
    several = make_plan(shapes(), profile, other_resolutions=[(64, 64)])
    assert [t.key for t in several.targets] == ["executorch:xnnpack", "onnx:cpu"]
    with pytest.raises(BadInput, match="it holds one picture size"):
        make_plan(shapes(), profile, targets=["onnx:qnn"], other_resolutions=[(64, 64)])
    with pytest.raises(BadInput, match="needs the figure soc_model"):
        make_plan(shapes(), load_profile("server"), targets=["onnx:qnn"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Component, Artifact, Path]:
    directory = tmp_path_factory.mktemp("saved")
    made = normed()
    return made, OnnxQnn().export(made, "qnn", "w8a16", directory, CHIP), directory


@with_extra
def test_eight_bits_run_from_the_context(saved: tuple[Component, Artifact, Path]) -> None:
    made, artifact, directory = saved
    names = ["student-graph.onnx", "student.onnx", "student_qnn.bin"]
    assert sorted(f.name for f in directory.iterdir()) == sorted(f.name for f in artifact.files) == names
    assert artifact.compile_seconds is not None
    run = OnnxQnn().open(artifact.path, threads=1)
    assert relative_error(run(arrays(made))["velocity"], reference(made)) < 0.03
    with pytest.raises(BadInput, match="got inputs"):
        run({})
    described = OnnxQnn().describe(artifact.path)
    assert list(described.placement) == ["HTP"]
    assert described.placement["HTP"] > 5
    assert described.weights["conv.weight_quantized"] == "uint8"
    assert described.bytes == sum(f.stat().st_size for f in artifact.files)
    assert described.notes[0] == "SoC model 64, Hexagon architecture v73"
    assert OnnxQnn().versions()["QNN"].count(".") == 2


@with_extra
def test_the_same_export_gives_the_same_bytes(saved: tuple[Component, Artifact, Path], tmp_path: Path) -> None:
    _, first, _ = saved
    again = OnnxQnn().export(normed(), "qnn", "w8a16", tmp_path, CHIP)
    assert [f.read_bytes() for f in again.files] == [f.read_bytes() for f in first.files]


@with_extra
def test_fp16_where_the_chip_has_it_and_named_nodes_where_not(tmp_path: Path) -> None:
    made = normed()
    artifact = OnnxQnn().export(made, "qnn", "fp16", tmp_path, FLAGSHIP)
    run = OnnxQnn().open(artifact.path, threads=1)
    assert relative_error(run(arrays(made))["velocity"], reference(made)) < 5e-3
    assert set(OnnxQnn().describe(artifact.path).weights.values()) <= {"float16", "int64"}
    none = tmp_path / "none"
    none.mkdir()
    with pytest.raises(GateFailed, match=r"does not take .* nodes, first 'node_.*--precision w8a16") as caught:
        OnnxQnn().export(made, "qnn", "fp16", none, CHIP)
    assert caught.value.exit_code == 1
    with pytest.raises(GateFailed, match=r"does not take 1 of \d+ nodes, first 'node_einsum.*' \(Einsum\)"):
        OnnxQnn().export(component(Mixing(), {"x": (1, 4, 1, 4)}, ("y", (1, 4, 1, 4))), "qnn", "fp16", none, FLAGSHIP)
    assert list(none.iterdir()) == []


@with_extra
def test_a_calibrated_precision_without_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="give prompts with --calibration"):
        OnnxQnn().export(uncalibrated(), "qnn", "w8a16", tmp_path, CHIP)
    assert list(tmp_path.iterdir()) == []


@with_extra
def test_a_damaged_context_is_one_line(saved: tuple[Component, Artifact, Path], tmp_path: Path) -> None:
    _, artifact, _ = saved
    for file in artifact.files:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "student_qnn.bin").write_bytes(b"\0" * 4096)
    with pytest.raises((RuntimeError, ChildDied)) as caught:
        OnnxQnn().open(tmp_path / "student.onnx", threads=1)
    assert "\n" not in str(caught.value)


def reciprocals_below_one(folder: Path) -> tuple[Path, Arrays]:
    """A quantised graph of one reciprocal, of 0.23 ... 0.45, and a square; and its input."""
    nodes = [
        helper.make_node("Reciprocal", ["latent"], ["r"], "inverting"),
        helper.make_node("Mul", ["r", "r"], ["y"], "squaring"),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 4, 4]) for n in ("latent", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), str(folder / "plain.onnx"))
    x = np.linspace(0.23, 0.45, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    made = component(nn.Identity(), {"latent": x.shape}, ("y", x.shape))
    calibrated = dataclasses.replace(made, calibration=lambda: iter([{"latent": x}]))
    qnn_graph.quantise(folder / "plain.onnx", calibrated, folder / "quantised.onnx")
    return folder / "quantised.onnx", {"latent": x}


@with_extra
def test_layers_name_the_operator_that_the_npu_gets_wrong(saved: tuple[Component, Artifact, Path], tmp_path: Path) -> None:
    made, artifact, _ = saved

    def on_npu(path: Path, given: Arrays) -> Arrays:
        return serve(path, chip_of(artifact.path))(given)

    right = first_wrong(OnnxProbe(compiled_graph(artifact.path), arrays(made), on_npu), 0.05)
    assert right.wrong is None
    found = first_wrong(OnnxProbe(*reciprocals_below_one(tmp_path), on_npu), 0.05)
    assert found.wrong is not None
    assert found.wrong.name == "inverting"
