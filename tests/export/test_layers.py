"""`first_wrong` against exhaustive search on made-up graphs, and on real ones: ONNX on the CPU, Core ML in our executor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from snapgen_deploy.check.layer_check import Work, compare_layers
from snapgen_deploy.check.layers import first_wrong
from snapgen_deploy.cli.doctor import doctor
from snapgen_deploy.errors import MeasurementFailed
from snapgen_deploy.export.base import Arrays
from snapgen_deploy.export.onnx.probe import OnnxProbe, run_on_cpu
from snapgen_deploy.export.probe import GraphLayer
from tests.cli.conftest import invoke
from tests.mil.mil_harness import TARGETS, Function, Program, mb, save, types

app = typer.Typer()
app.command()(doctor)
X = np.linspace(1, 300, 64, dtype=np.float32).reshape(1, 64)


class Made:
    """A chain in which the layers of `wrong` and all that follow the first of them are wrong."""

    warnings = ()

    def __init__(self, count: int, first: int | None) -> None:
        self.layers = [GraphLayer(f"n{i}", "Op", f"v{i}", (f"v{i - 1}",) if i else ("x",)) for i in range(count)]
        self.first, self.asked = first, set[str]()

    def exact(self, names: list[str]) -> Arrays:
        return {name: np.ones(3, np.float32) for name in names}

    def saved(self, names: list[str]) -> Arrays:
        self.asked.update(names)
        return {n: np.full(3, 1.0 if self.first is None or int(n[1:]) < self.first else 2.0, np.float32) for n in names}


@settings(max_examples=60)
@given(st.data())
def test_the_first_wrong_layer_is_found_with_few_looks(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 3000))
    first = data.draw(st.one_of(st.none(), st.integers(0, count - 1)))
    probe = Made(count, first)
    found = first_wrong(probe, 0.1)
    assert (found.wrong.name if found.wrong else None) == (f"n{first}" if first is not None else None)
    assert found.looked_at == len(probe.asked) <= 3 * 24 + 2
    assert found.worst == (1.0 if first is not None else 0.0)


def test_a_value_that_is_not_a_number_is_wrong() -> None:
    probe = Made(5, None)
    probe.saved = lambda names: {n: np.full(3, np.nan if n == "v3" else 1.0, np.float32) for n in names}  # type: ignore[method-assign]
    found = first_wrong(probe, 1e9)
    assert found.wrong is not None
    assert found.wrong.name == "n3"


def chain(path: Path) -> Path:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"], "squaring"),
        helper.make_node("Sqrt", ["square"], ["root"], "rooting"),
        helper.make_node("Softmax", ["root"], ["y"], "softening"),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 64]) for n in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(nodes, "chain", values[:1], values[1:]), ir_version=10, opset_imports=[helper.make_opsetid("", 20)]
    )
    onnx.save(model, str(path))
    return path


def test_a_runtime_that_gets_one_operator_wrong_is_told_by_its_node(tmp_path: Path) -> None:
    def lossy(path: Path, inputs: Arrays) -> Arrays:
        model = onnx.load(str(path))
        for node in model.graph.node:
            if node.op_type == "Sqrt":
                node.op_type = "Abs"
        broken = path.with_name("broken.onnx")
        onnx.save(model, str(broken))
        return run_on_cpu(broken, inputs)

    graph = chain(tmp_path / "chain.onnx")
    found = first_wrong(OnnxProbe(graph, {"x": X}, lossy), 0.01)
    assert found.wrong == GraphLayer("rooting", "Sqrt", "root", ("square",))
    right = first_wrong(OnnxProbe(graph, {"x": X}, run_on_cpu), 1e-5)
    assert right.wrong is None
    assert right.looked_at == right.layers == 3


def overflowing(path: Path) -> Path:
    with Function({"x": mb.TensorSpec(shape=(1, 64))}, opset_version=TARGETS[18]) as function:
        half = mb.cast(x=function.inputs["x"], dtype="fp16")
        square = mb.mul(x=half, y=half, name="square")  # 300^2 is beyond the largest fp16 number
        function.set_outputs([mb.cast(x=mb.sqrt(x=square, name="root"), dtype="fp32", name="y")])
    program = Program()
    program.add_function("main", function)
    assert square.dtype == types.fp16
    return save(program, path, 18)


def test_doctor_names_the_layer_of_a_core_ml_package_that_overflows(tmp_path: Path) -> None:
    package = overflowing(tmp_path / "overflowing.mlpackage")
    np.savez(tmp_path / "x.npz", x=X)
    done = CliRunner().invoke(app, [str(package), "--layers", "--inputs", str(tmp_path / "x.npz")])
    assert done.exit_code == 1
    assert "first wrong: mul 'square' (output square)" in done.output
    np.savez(tmp_path / "x.npz", x=X / 300)
    done = CliRunner().invoke(app, [str(package), "--layers", "--inputs", str(tmp_path / "x.npz"), "--json"])
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)["components"].values()
    assert found["verdict"] == "passed"
    assert 0 < max(found["errors"].values()) < 1e-3


def test_doctor_names_the_place_where_activations_of_a_core_ml_package_saturate(tmp_path: Path) -> None:
    with Function({"x": mb.TensorSpec(shape=(1, 64))}, opset_version=TARGETS[18]) as function:
        twice = mb.mul(x=function.inputs["x"], y=np.float32(2), name="twice")
        few = mb.quantize(input=twice, scale=np.float32(0.001), zero_point=np.int8(0), output_dtype="int8", name="few")
        back = mb.dequantize(input=few, scale=np.float32(0.001), zero_point=np.int8(0), name="back")  # up to 0.127
        function.set_outputs([mb.add(x=back, y=np.float32(1), name="y")])
    program = Program()
    program.add_function("main", function)
    package = save(program, tmp_path / "saturating.mlpackage", 18)
    for scale, code in ((1.0, 1), (0.05 / 300, 0)):
        np.savez(tmp_path / "x.npz", x=X * np.float32(scale))
        done = CliRunner().invoke(app, [str(package), "--layers", "--inputs", str(tmp_path / "x.npz")])
        assert done.exit_code == code, done.output
        assert ("first wrong: dequantize 'back'" in done.output) == bool(code)


def test_single_precision_of_an_fp16_graph_is_single(tmp_path: Path) -> None:
    half = TensorProto.FLOAT16
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=half),
        helper.make_node("Add", ["narrow", "much"], ["large"]),
        helper.make_node("Sub", ["large", "much"], ["small"]),
        helper.make_node("Cast", ["small"], ["y"], to=TensorProto.FLOAT),
    ]
    ports = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64])] for name in ("x", "y")]
    much = numpy_helper.from_array(np.array([900.0], np.float16), "much")
    graph = helper.make_graph(nodes, "g", *ports, [much])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(tmp_path / "half.onnx"))
    x = np.linspace(-1, 1, 64, dtype=np.float32)[None]
    probe = OnnxProbe(tmp_path / "half.onnx", {"x": x}, run_on_cpu)
    exact = probe.exact(["narrow", "small", "y"])
    assert {v.dtype for v in exact.values()} == {np.dtype("float32")}
    np.testing.assert_array_equal(exact["narrow"], x)
    np.testing.assert_allclose(exact["y"], x, atol=1e-4)
    assert probe.saved(["narrow"])["narrow"].dtype == np.float16


def test_doctor_takes_an_onnx_file_and_says_what_it_cannot_look_into(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(chain(tmp_path / "chain.onnx")), "--layers"])
    assert done.exit_code == 0, done.output
    assert "chain.onnx: no wrong layer" in done.output
    (tmp_path / "student.pte").write_bytes(b"")
    done = CliRunner().invoke(app, [str(tmp_path / "student.pte"), "--layers"])
    assert isinstance(done.exception, MeasurementFailed)
    assert "student.pte: not_run (a .pte file hands whole graphs to its delegate" in done.output


def test_an_asset_of_core_ai_is_told_to_be_closed(tmp_path: Path) -> None:
    found = compare_layers(Work("student", tmp_path / "student.aimodel", "coreai", None), 0.1)
    assert found == "Apple's runtime takes an asset as a whole and shows no value inside: compare it as onnx:cpu"


@pytest.mark.parametrize("option", [("--target", "coreml"), ("--limit", "0.1")])
def test_options_of_layers_alone_are_refused_without_it(tmp_path: Path, option: tuple[str, str]) -> None:
    done = CliRunner().invoke(app, [str(tmp_path), *option])
    assert "belong to --layers" in str(done.exception)


def test_files_that_cannot_be_compared_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert invoke("doctor", tmp_path / "empty.onnx", "--layers").exit_code == 4
    (tmp_path / "damaged.onnx").write_bytes(b"no model")
    done = invoke("doctor", tmp_path / "damaged.onnx", "--layers")
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert "cannot be read as an ONNX model" in done.stderr
