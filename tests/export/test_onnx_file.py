"""ONNX files without their weights in memory: the same bytes as protobuf's, and damage is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from google.protobuf.message import DecodeError

from snapgen_deploy.export.onnx import file as onnx_file

LARGE = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
SMALL = np.arange(64, dtype=np.float32)


@pytest.fixture
def message() -> onnx.ModelProto:
    """x -> (x @ large) @ numbers + small; `numbers` is large but kept as numbers, not as raw data."""
    helper, tensor = onnx.helper, onnx.numpy_helper.from_array
    kind = onnx.TensorProto.FLOAT
    ports = [helper.make_tensor_value_info(name, kind, (1, 64)) for name in ("x", "y")]
    nodes = [("MatMul", ["x", "large"], "a"), ("MatMul", ["a", "numbers"], "b"), ("Add", ["b", "small"], "y")]
    weights = [tensor(LARGE, "large"), tensor(SMALL, "small"), helper.make_tensor("numbers", kind, (64, 64), LARGE.ravel())]
    weights[0].doc_string = "stands behind the data"
    graph = helper.make_graph(
        [helper.make_node(op, given, [made]) for op, given, made in nodes], "g", ports[:1], ports[1:], weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, doc_string="doc")
    model.metadata_props.add(key="author", value="A")
    return onnx_ir.to_proto(onnx_ir.from_proto(model))


def test_the_bytes_are_those_of_protobuf(message: onnx.ModelProto, tmp_path: Path) -> None:
    model = onnx_ir.from_proto(message)
    onnx_file.write(model, tmp_path / "x.onnx")
    assert (tmp_path / "x.onnx").read_bytes() == message.SerializeToString()
    assert onnx_ir.to_proto(model) == message, "the model keeps its weights"


def test_reading_says_where_the_data_lies_and_a_reference_finds_it(message: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(message.SerializeToString())
    model, places = onnx_file.read(path)
    assert set(places) == {"large"}
    offset, length = places["large"]
    assert path.read_bytes()[offset : offset + length] == LARGE.tobytes()
    assert [w.name for w in model.graph.initializer] == ["large", "small", "numbers"]
    assert model.ByteSize() < message.ByteSize() - LARGE.nbytes
    onnx_file.refer(model, places, path.name)
    (tmp_path / "light.onnx").write_bytes(model.SerializeToString())
    loaded = onnx.load(str(tmp_path / "light.onnx"))
    for got, expected in zip(loaded.graph.initializer, message.graph.initializer, strict=True):
        assert (onnx.numpy_helper.to_array(got) == onnx.numpy_helper.to_array(expected)).all()


def test_a_truncated_file_is_an_error_wherever_it_ends(message: onnx.ModelProto, tmp_path: Path) -> None:
    path, whole = tmp_path / "x.onnx", message.SerializeToString()
    graph = whole.index(LARGE.tobytes())
    for end in (graph - 40, graph - 1, graph, graph + 100, graph + LARGE.nbytes, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises((ValueError, DecodeError)):
            onnx_file.read(path)
