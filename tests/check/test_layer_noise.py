"""Inputs that nobody gave: noise of its own for every port, the same in every process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from snapgen_deploy.export.onnx.probe import noise_inputs
from tests.another import in_another_process

NAMES = ("left", "kept", "text")  # equally long


def graph(folder: Path) -> Path:
    """An ONNX file whose inputs have the same shape and equally long names."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8]) for name in NAMES]
    out = helper.make_tensor_value_info("sum", TensorProto.FLOAT, [2, 8])
    nodes = [helper.make_node("Sum", list(NAMES), ["sum"])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ports, [out])), str(folder / "g.onnx"))
    return folder / "g.onnx"


def test_equally_long_names_have_noise_of_their_own(tmp_path: Path) -> None:
    made = noise_inputs(graph(tmp_path))
    assert set(made) == set(NAMES)
    for i, name in enumerate(NAMES):
        assert made[name].dtype == np.float32
        for other in NAMES[:i]:
            assert not np.array_equal(made[name], made[other])
            assert abs(np.corrcoef(made[name].ravel(), made[other].ravel())[0, 1]) < 0.9


def total(path: Path) -> float:
    return sum(float(a.ravel()[0]) for a in noise_inputs(path).values())


def test_it_is_the_same_in_every_process(tmp_path: Path) -> None:
    path = graph(tmp_path)
    assert in_another_process(total, path, printed=tmp_path / "printed") == total(path)
