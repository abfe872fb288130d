"""ONNX in mixed precision: indices and tables that onnxruntime makes the very weights of; what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from snapgen_deploy.export.base import Component, Port
from snapgen_deploy.export.onnx.target import Onnx
from snapgen_deploy.quantise.palettes import fit_palette, snap

TARGET = Onnx()


class Two(nn.Module):
    """A layer of 16 values and one of 256, of sizes that are no power of two, and a table that is added."""

    def __init__(self, rows: int = 5) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.few, self.many = nn.Linear(33, 41), nn.Linear(41, 29)
        self.register_buffer("table", torch.randn(1, rows, 29))
        with torch.no_grad():
            for layer, clusters in ((self.few, 16), (self.many, 256)):
                weight = layer.weight.numpy()
                layer.weight.copy_(torch.from_numpy(snap(weight, fit_palette(weight, clusters))))

    def forward(self, latent: Tensor) -> Tensor:
        hidden = self.few(latent).relu()
        summed: Tensor = self.many(hidden) + self.table
        return summed


def component(palettes: dict[str, int], rows: int = 5) -> Component:
    ports = Port("latent", (1, rows, 33), "float32", ""), Port("velocity", (1, rows, 29), "float32", "")
    network = Two(rows).eval()
    return Component("student", network, ports[:1], ports[1:], (torch.ones(1, rows, 33),), "", palettes=palettes)


BITS = {"few.weight": 4, "many.weight": 8}


def test_the_file_holds_few_bits_and_computes_the_same(tmp_path: Path) -> None:
    case = component(BITS)
    artifact = TARGET.export(case, "cpu", "mixed", tmp_path, {})
    weights = TARGET.weights(artifact.path)
    assert {name: (w.kind, w.values, w.shape) for name, w in weights.items() if w.index_bits} == {
        "few.weight": ("palette4", 33 * 41, (33, 41)),  # as a product takes it
        "many.weight": ("palette8", 41 * 29, (41, 29)),
    }
    assert weights["few.weight"].bits == 4 * 33 * 41 + 32 * 16
    assert weights["table"].kind == "float32"
    x = np.random.default_rng(0).standard_normal((1, 5, 33)).astype(np.float32)
    got = TARGET.open(artifact.path, threads=1)({"latent": x})["velocity"]
    with torch.no_grad():
        assert np.allclose(got, case.module(torch.from_numpy(x)).numpy(), atol=1e-5)
    described = TARGET.describe(artifact.path)
    assert described.skipped == {}
    assert described.ops["Gather"] == 2
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "as_it_runs.onnx")
    onnxruntime.InferenceSession(str(artifact.path), options)
    runs = [node.op_type for node in onnx.load(tmp_path / "as_it_runs.onnx").graph.node]
    assert not {"Gather", "Cast"} & set(runs), "the weights are put together at every call"


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.append(TARGET.export(component(BITS), "cpu", "mixed", tmp_path / name, {}).path.read_bytes())
    assert made[0] == made[1]


def test_sizes_share_their_palettes(tmp_path: Path) -> None:
    parts = {}
    for rows in (5, 7):
        (tmp_path / str(rows)).mkdir()
        parts[f"{rows}x{rows}"] = TARGET.export(component(BITS, rows), "cpu", "mixed", tmp_path / str(rows), {})
    (tmp_path / "joined").mkdir()
    joined = TARGET.join(parts, tmp_path / "joined")
    assert joined.shared_bytes >= (33 * 41 + 1) // 2 + 41 * 29
    for size, artifact in joined.artifacts.items():
        rows = int(size.split("x")[0])
        x = np.random.default_rng(rows).standard_normal((1, rows, 33)).astype(np.float32)
        alone, together = (TARGET.open(a.path, threads=1)({"latent": x})["velocity"] for a in (parts[size], artifact))
        assert np.array_equal(alone, together)
        assert TARGET.weights(artifact.path)["few.weight"].index_bits == 4


def test_a_component_without_palettes_is_stored_in_half_precision(tmp_path: Path) -> None:
    weights = TARGET.weights(TARGET.export(component({}), "cpu", "mixed", tmp_path, {}).path)
    assert {w.kind for w in weights.values()} == {"float16"}


def test_weights_that_take_more_values_than_their_bits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="few.weight takes 16 values; its palette has 8"):
        TARGET.export(component({"few.weight": 3}), "cpu", "mixed", tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_a_weight_that_the_graph_lost_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = onnx.numpy_helper.to_array
    monkeypatch.setattr(onnx.numpy_helper, "to_array", lambda tensor: changed(tensor) * 2)
    with pytest.raises(RuntimeError, match="2 of 2 palettes are not in the graph, first few.weight"):
        TARGET.export(component(BITS), "cpu", "mixed", tmp_path, {})
