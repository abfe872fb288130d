"""Core ML's and Vulkan's delegates of ExecuTorch: what is in the files, what runs here, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from snapgen_deploy.check.gates import placement_gates
from snapgen_deploy.errors import BadInput, GateFailed
from snapgen_deploy.export.base import Artifact
from snapgen_deploy.export.executorch.coreml import ExecuTorchCoreML
from snapgen_deploy.export.executorch.coreml_folder import pack, unpack
from snapgen_deploy.export.executorch.vulkan import ExecuTorchVulkan
from tests.export.graph_cases import OPTIONS, arrays, component, mixed, reference

pytest.importorskip("executorch")
COREML, VULKAN = ExecuTorchCoreML(), ExecuTorchVulkan()


class Sine(nn.Module):
    """A projection, and the inverse hyperbolic sine, which neither delegate takes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).asinh()


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def coreml(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return COREML.export(mixed(), "coreml", "fp16", tmp_path_factory.mktemp("coreml"), OPTIONS)


@pytest.fixture(scope="module")
def vulkan(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return VULKAN.export(mixed(), "vulkan", "fp16", tmp_path_factory.mktemp("vulkan"), OPTIONS)


def test_the_core_ml_package_is_taken_out_of_the_file_and_computes_what_torch_computes(coreml: Artifact) -> None:
    case = mixed()
    assert COREML.unavailable("coreml") is None
    runner = COREML.open(coreml.path, threads=1)
    got = runner(arrays(case))["velocity"]
    assert got.dtype == np.float32
    assert 0 < relative(got, reference(case)) <= 1e-2
    assert runner.headroom().largest < 65504  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="got inputs"):
        runner({"latent": arrays(case)["latent"]})


def test_fp32_is_exact_in_core_ml(tmp_path: Path) -> None:
    case = mixed()
    made = COREML.export(case, "coreml", "fp32", tmp_path, {"compute_units": "cpu_only"})
    assert relative(COREML.open(made.path, threads=1)(arrays(case))["velocity"], reference(mixed())) <= 1e-5
    assert list(tmp_path.iterdir()) == [made.path]


def test_both_keep_the_graph_in_one_delegate(coreml: Artifact, vulkan: Artifact) -> None:
    inside = COREML.describe(coreml.path)
    assert inside.placement == {"CoreMLBackend": 1, "portable": 0}
    assert inside.ops["conv"] == 1
    assert set(inside.weights.values()) == {"float16"}
    assert inside.average_bits == 16
    assert any("iOS 18" in note for note in inside.notes)
    inside = VULKAN.describe(vulkan.path)
    assert inside.placement == {"VulkanBackend": 1, "portable": 0}
    assert inside.ops["aten._softmax.default"] == 1
    assert set(inside.weights.values()) == {"float16"}


@pytest.mark.parametrize("name", ["coreml", "vulkan"])
def test_another_process_writes_the_same_bytes(name: str, elsewhere: Path, request: pytest.FixtureRequest) -> None:
    ours: Artifact = request.getfixturevalue(name)
    assert ours.path.read_bytes() == (elsewhere / name / "student.pte").read_bytes()


def test_what_is_left_outside_fails_its_gate_and_is_named(tmp_path: Path) -> None:
    case = component(Sine(), {"x": (1, 3, 4)}, ("y", (1, 3, 4)))
    for target in (COREML, VULKAN):
        made = target.export(case, target.variants[0], "fp32", tmp_path, {})
        gates = placement_gates(made.target, {"student": target.describe(made.path)})
        assert [(g.value, g.verdict, g.detail) for g in gates] == [(1.0, "failed", "aten::asinh.out")]
        if target is COREML:
            with pytest.raises(GateFailed, match=r"outside the Core ML delegate: aten::asinh\.out"):
                COREML.open(made.path, threads=1)


def test_fewer_bits_are_read_back_from_the_package_inside(tmp_path: Path) -> None:
    case = component(nn.Linear(64, 64), {"x": (1, 3, 64)}, ("y", (1, 3, 64)))
    made = COREML.export(case, "coreml", "palette4", tmp_path, {})
    found = COREML.describe(made.path)
    assert "palette4" in found.weights.values()
    assert 4 < (found.average_bits or 0) < 8
    assert relative(COREML.open(made.path, threads=1)(arrays(case))["y"], reference(case)) < 0.3


def test_the_folder_is_what_executorchs_own_reader_reads(coreml: Artifact, tmp_path: Path) -> None:
    from executorch.backends.apple.coreml import executorchcoreml as theirs

    (model,) = COREML.models(coreml.path, tmp_path)
    folder = model.package.parent
    assert theirs.unflatten_directory_contents(pack(folder), str(tmp_path))
    found = tmp_path / "lowered_module"
    assert _files(found) == _files(folder)
    about = json.loads((found / "metadata.json").read_text())
    assert about["identifier"].startswith("executorch_")
    assert about["inputNames"] == ["latent", "bias"]
    (tmp_path / "ours").mkdir()
    unpack(theirs.flatten_directory_contents(str(folder)), tmp_path / "ours")
    assert _files(tmp_path / "ours") == _files(folder)


def _files(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no table"):
        unpack(b"no folder at all", tmp_path)
    region = {"offset": 0, "size": 3}
    node = {"name": "x", "kind": 0, "dataRegion": region, "children": {}}
    for name, message in (("../x", "without a path"), ("x", "cut short")):
        root = {"name": "", "kind": 1, "dataRegion": region, "children": {name: 0}}
        data = b"ab" if name == "x" else b"abc"
        region["size"] = 3 if name != "x" else 300
        with pytest.raises(BadInput, match=message):
            unpack(data + json.dumps({"nodes": [node, root]}).encode()[::-1], tmp_path)
    with pytest.raises(BadInput, match="without"):
        unpack(json.dumps({"nodes": [{"name": ""}]}).encode()[::-1], tmp_path)


def test_vulkan_says_why_it_does_not_run_here(vulkan: Artifact) -> None:
    from executorch.runtime import Runtime

    known = Runtime.get().backend_registry.registered_backend_names
    reason = VULKAN.unavailable("vulkan")
    assert (reason is None) == ("VulkanBackend" in known)
    assert reason is None or all(name in reason for name in (*known, "VulkanBackend"))


def test_vulkan_refuses_convolutions_that_its_delegate_computes_wrong(tmp_path: Path) -> None:
    grouped = component(nn.Conv2d(8, 8, 1, groups=2), {"x": (1, 8, 4, 4)}, ("y", (1, 8, 4, 4)))
    with pytest.raises(RuntimeError, match="2 groups of 4 channels"):
        VULKAN.export(grouped, "vulkan", "fp32", tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_the_decoders_norm_without_groups_is_the_same(tmp_path: Path) -> None:
    from snapgen_deploy.sparse.decoder import ImageGroupNorm

    torch.manual_seed(0)
    norm = ImageGroupNorm(nn.GroupNorm(4, 12))
    x = torch.randn(2, 12, 5, 7)
    expected = norm(x)
    norm.ungrouped()
    assert norm.groups == 1
    torch.testing.assert_close(norm(x), expected, rtol=1e-5, atol=1e-6)
    again = norm.average.clone()
    norm.ungrouped()  # once more changes nothing
    torch.testing.assert_close(norm.average, again)


def test_sizes_of_vulkan_share_their_weights(tmp_path: Path) -> None:
    def part(side: int) -> Artifact:
        shape = (1, 16, side, side)
        torch.manual_seed(0)
        case = component(nn.Conv2d(16, 16, 3, padding=1), {"latent": shape}, ("velocity", shape))
        (tmp_path / str(side)).mkdir()
        return VULKAN.export(case, "vulkan", "fp32", tmp_path / str(side), {})

    joined = VULKAN.join({"8x8": part(8), "4x4": part(4)}, tmp_path)
    assert [a.entry for a in joined.artifacts.values()] == ["", "size_4x4"]
    assert joined.shared_bytes >= 4 * (16 * 16 * 9 + 16)
    for artifact in joined.artifacts.values():
        assert VULKAN.describe(artifact.path, artifact.entry).placement == {"VulkanBackend": 1, "portable": 0}


def test_what_is_not_offered(tmp_path: Path) -> None:
    for target, variant, precision, options, message in (
        (COREML, "xnnpack", "fp16", {}, "xnnpack"),
        (COREML, "coreml", "w8a8", {}, "w8a8"),
        (COREML, "coreml", "fp16", {"compute_units": "all_of_them"}, "all_of_them"),
        (COREML, "coreml", "fp16", {"deployment": "iOS3"}, "iOS3"),
        (VULKAN, "vulkan", "int8-dynamic", {}, "int8-dynamic"),
    ):
        with pytest.raises(BadInput, match=f"'{message}'"):
            target.export(mixed(), variant, precision, tmp_path, options)
    assert list(tmp_path.iterdir()) == []
