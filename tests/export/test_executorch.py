from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from snapgen_deploy.errors import BadInput, Refused
from snapgen_deploy.export.base import Artifact, Runner
from snapgen_deploy.export.executorch.target import ExecuTorch
from snapgen_deploy.sparse.decoder import ImageGroupNorm, with_tiles_first
from tests.export.graph_cases import OPTIONS, arrays, component, contents, mixed, reference, running_sum, shuffle

pytest.importorskip("executorch")
TARGET = ExecuTorch()
LIMIT = 1e-5  # relative, fp32


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return TARGET.export(mixed(), "xnnpack", "fp32", tmp_path_factory.mktemp("pte"), OPTIONS)


@pytest.fixture(scope="module")
def runner(saved: Artifact) -> Runner:
    return TARGET.open(saved.path, threads=1)


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def test_what_was_saved_computes_what_torch_computes(runner: Runner) -> None:
    case = mixed()
    got = runner(arrays(case))
    assert list(got) == ["velocity"]
    assert got["velocity"].dtype == np.float32
    assert relative(got["velocity"], reference(case)) <= LIMIT
    other = {name: np.flip(array, -1) for name, array in arrays(case).items()}  # views with negative strides
    flipped = case.module(*(torch.from_numpy(a.copy()) for a in other.values())).detach().numpy()
    assert relative(runner(other)["velocity"], flipped) <= LIMIT


def test_another_process_writes_the_same_bytes(saved: Artifact, elsewhere: Path) -> None:
    assert saved.files == (saved.path,)
    assert list(saved.path.parent.iterdir()) == [saved.path]
    assert saved.path.read_bytes() == (elsewhere / "student.pte").read_bytes()


def test_description_of_a_graph_inside_one_delegate(saved: Artifact) -> None:
    found = TARGET.describe(saved.path)
    assert found.bytes == saved.path.stat().st_size
    assert found.placement == {"XnnpackBackend": 1, "portable": 0}
    assert found.portable_ops == {}
    assert found.ops["XNNConv2d"] == 1
    assert found.ops["XNNFullyConnected"] == 2
    assert found.ops["XNNBatchMatrixMultiply"] == 2
    assert found.ops["XNNSoftmax"] == 1
    assert len(found.weights) == 6  # three weights, three biases
    assert set(found.weights.values()) == {"float32"}


def test_description_counts_what_is_left_outside(tmp_path: Path) -> None:
    case = running_sum()
    artifact = TARGET.export(case, "xnnpack", "fp32", tmp_path, {})
    found = TARGET.describe(artifact.path)
    assert found.portable_ops == {"aten::cumsum.out": 1}
    assert found.placement == {"XnnpackBackend": 1, "portable": 1}
    assert found.ops == {"XNNFullyConnected": 1, "aten::cumsum.out": 1}
    assert relative(TARGET.open(artifact.path, threads=1)(arrays(case))["y"], reference(case)) <= LIMIT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"latent": np.zeros((1, 4, 4, 2), np.float32)},
            r"'latent' is float32 \[1, 4, 4, 2\], expected .* \[1, 4, 4, 4\]",
        ),
        ({"latent": np.zeros((1, 4, 4, 4))}, "'latent' is float64"),
        ({"noise": np.zeros(1, np.float32)}, r"got inputs \['bias', 'latent', 'noise'\], expected \['latent', 'bias'\]"),
    ],
)
def test_inputs_that_are_not_the_files(runner: Runner, change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        runner({**arrays(mixed()), **change})


def test_a_missing_input(runner: Runner) -> None:
    with pytest.raises(BadInput, match=r"got inputs \['latent'\], expected"):
        runner({"latent": arrays(mixed())["latent"]})


def test_ranks_that_would_not_load_are_refused_before_lowering(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"student -> executorch:xnnpack: operation .* of rank 6 .* the limit is 5"):
        TARGET.export(shuffle(), "xnnpack", "fp32", tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_outputs_must_be_the_ports(tmp_path: Path) -> None:
    case = dataclasses.replace(mixed(), outputs=running_sum().outputs)
    with pytest.raises(RuntimeError, match=r"student -> executorch:xnnpack: outputs of the traced graph are .* expected"):
        TARGET.export(case, "xnnpack", "fp32", tmp_path, {})


def test_a_failure_of_the_library_is_one_line_with_its_cause(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ torch.ones(5, 5)

    case = component(Broken(), {"x": (1, 3, 4)}, ("y", (1, 3, 5)))
    with pytest.raises(RuntimeError, match=r"^student -> executorch:xnnpack: [^\n]+$") as caught:
        TARGET.export(case, "xnnpack", "fp32", tmp_path, {})
    assert caught.value.__cause__ is not None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["text", "cut", "absent"])
def test_files_that_do_not_load(saved: Artifact, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad.pte"
    if damage == "text":
        path.write_text("no program")
    elif damage == "cut":
        path.write_bytes(saved.path.read_bytes()[:600])
    with pytest.raises((BadInput, RuntimeError), match=r"bad\.pte"):
        TARGET.open(path, threads=1)
    with pytest.raises(BadInput, match=r"bad\.pte"):
        TARGET.describe(path)


def test_the_file_documents_itself(saved: Artifact) -> None:
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(saved.path)
    method = program.load_method("ports")
    assert method is not None
    data = json.loads(method.execute([])[0])
    assert data["inputs"][0] == {"name": "latent", "shape": [1, 4, 4, 4], "dtype": "float32", "doc": "about latent"}
    assert (data["author"], data["license"], data["version"]) == ("the tests", "Apache-2.0", "3")


def test_what_is_not_offered(tmp_path: Path) -> None:
    for variant, precision, options in (
        ("vulkan", "fp32", {}),
        ("xnnpack", "fp8", {}),
        ("xnnpack", "fp32", {"speed": "high"}),
    ):
        with pytest.raises(BadInput, match="executorch: "):
            TARGET.export(mixed(), variant, precision, tmp_path, options)
    assert "vulkan" in str(TARGET.unavailable("vulkan"))
    assert TARGET.unavailable("xnnpack") is None


def test_versions_and_quiet(saved: Artifact, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert set(TARGET.versions()) == {"torch", "executorch", "torchao"}
    again = TARGET.export(running_sum(), "xnnpack", "fp32", tmp_path, {})
    TARGET.open(again.path, threads=1)
    assert capfd.readouterr() == ("", "")
    assert list(contents(saved.files, saved.path.parent)) == ["student.pte"]


@pytest.mark.parametrize(("tiles_first", "error"), [(True, (0.0, 3e-6)), (False, (1e-5, 1e-3))])
def test_a_norm_over_many_positions_is_exact_by_tiles_only(
    tmp_path: Path, tiles_first: bool, error: tuple[float, float]
) -> None:
    torch.manual_seed(0)
    norm = ImageGroupNorm(nn.GroupNorm(2, 4))
    case = component(with_tiles_first(norm) if tiles_first else norm, {"x": (1, 4, 512, 600)}, ("y", (1, 4, 512, 600)))
    x = case.example[0].square_()  # far from a mean of zero
    expected = nn.functional.group_norm(x.double(), 2).numpy()
    made = TARGET.export(case, "xnnpack", "fp32", tmp_path, OPTIONS)
    assert TARGET.describe(made.path).placement == {"XnnpackBackend": 1, "portable": 0}
    low, high = error
    assert low <= relative(TARGET.open(made.path, threads=1)(arrays(case))["y"], expected) < high


@pytest.mark.parametrize("size", [(256, 256), (300, 251), (1, 70000), (257, 263), (256, 8)])
def test_means_by_tiles_are_the_means(size: tuple[int, int]) -> None:
    norm = ImageGroupNorm(nn.GroupNorm(3, 6))
    x = torch.randn(2, 6, *size)
    expected = norm(x)
    torch.testing.assert_close(with_tiles_first(norm)(x), expected, rtol=1e-4, atol=1e-5)
