"""Core AI assets: converted by Apple's coreai-torch, run by Apple's runtime, read back, compressed and joined."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("coreai", reason="the extra is not installed: pip install 'snapgen-deploy[coreai]'")
pytest.importorskip("coreai_torch", reason="the extra is not installed: pip install 'snapgen-deploy[coreai]'")

from snapgen_deploy.errors import BadInput, Refused
from snapgen_deploy.export.base import Artifact, Description, Runner
from snapgen_deploy.export.coreai import compress as coreai_compress
from snapgen_deploy.export.coreai.products import in_parts
from snapgen_deploy.export.coreai.target import CoreAI
from snapgen_deploy.system.child import ChildDied
from tests.another import in_another_process
from tests.cli.conftest import invoke
from tests.export import test_sizes as sizes
from tests.export.graph_cases import OPTIONS, arrays, component, contents, mixed, reference, running_sum, shuffle
from tests.export.quantise_cases import odd, wide

TARGET = CoreAI()

# precision -> how the large layers of `wide` are stored, largest relative error, average bits from and to
CASES = {
    "palette8": ("palette8", 0.01, 8, 11),
    "palette4-grouped": ("palette4 per 16 channels", 0.15, 4, 8),
    "int8": ("int8 per 32 values", 0.01, 8, 11),
    "int4": ("int4 per 32 values", 0.15, 4, 8),
}


@pytest.fixture(scope="module", autouse=True)
def _built_once(tmp_path_factory: pytest.TempPathFactory):
    """coreai-opt's k-means is compiled on first use, into torch's cache of extensions, which a test would find empty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.getbasetemp() / "torch_extensions"))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    @functools.cache
    def export(precision: str) -> tuple[Artifact, Description]:
        case = mixed() if precision in ("fp16", "fp32") else wide()
        artifact = TARGET.export(case, "", precision, tmp_path_factory.mktemp(precision), OPTIONS)
        return artifact, TARGET.describe(artifact.path)

    return export


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("precision", "limit"), [("fp16", 5e-3), ("fp32", 1e-5)])
def test_apples_runtime_computes_what_torch_computes(made, precision, limit):
    results = TARGET.open(made(precision)[0].path, threads=1)(arrays(mixed()))
    assert list(results) == ["velocity"]
    assert results["velocity"].dtype == np.float32
    assert relative(results["velocity"], reference(mixed())) <= limit


@pytest.mark.parametrize("precision", CASES)
def test_fewer_bits_are_read_back_and_computed(made, precision):
    kind, limit, low, high = CASES[precision]
    artifact, found = made(precision)
    assert list(found.weights.values()).count(kind) >= 2, found.weights
    assert found.average_bits is not None
    assert low <= found.average_bits <= high
    assert any("192 values" in why for why in found.skipped.values())
    assert all(f"not quantised: {name}: {why}" in found.notes for name, why in found.skipped.items())
    error = relative(TARGET.open(artifact.path, threads=1)(arrays(wide()))["velocity"], reference(wide()))
    assert 1e-6 < error <= limit


def test_a_quantiser_that_takes_nothing_is_an_error(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(coreai_compress, "compress", lambda program, how: program)
    with pytest.raises(RuntimeError, match=r"student -> coreai: coreai-opt compressed no weight of 3 that it should take"):
        TARGET.export(wide(), "", "palette8", tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_a_component_of_which_no_layer_divides_is_left_whole_and_says_so(tmp_path: Path):
    found = TARGET.describe(TARGET.export(odd(), "", "int4", tmp_path, {}).path)
    assert set(found.skipped.values()) == {"float16: 60x60 does not divide into blocks of 32 inputs"}
    assert "nothing is quantised: all 2 layers are left" in found.notes


class Classes(nn.Module):
    """The class of every pixel, and the first of two parts of which the second has no width."""

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return latent.split([latent.shape[1], 0], dim=1)[0].argmax(1).to(latent.dtype)


def test_what_was_seen_to_fail_in_core_ai_is_found(tmp_path: Path):
    made = TARGET.export(component(Classes(), {"latent": (1, 3, 4, 4)}, ("velocity", (1, 4, 4))), "", "fp16", tmp_path, {})
    assert TARGET.describe(made.path).lint == {"argmax": 1, "empty-tensor": 1}
    (empty, argmax) = TARGET.findings(made.path)
    assert (empty.severity, argmax.severity) == ("error", "warning")
    result = invoke("doctor", made.path, "--json")
    assert result.exit_code == 1, result.output
    assert json.loads(result.stdout)["components"]["student.aimodel"]["counts"] == {"argmax": 1, "empty-tensor": 1}


def test_description(made):
    artifact, found = made("fp16")
    assert found.bytes == sum(f.stat().st_size for f in artifact.files)
    assert {name: found.ops[name] for name in ("conv2d", "softmax", "cast")} == {"conv2d": 1, "softmax": 1, "cast": 3}
    assert sum(n for name, n in found.ops.items() if "matmul" in name) == 4
    assert "constant" not in found.ops
    # a convolution's weight and bias, two projections' weights; their biases are added to products
    assert sorted(found.weights.values()) == ["float16"] * 6
    assert "conv2d.0.1" in found.weights
    assert found.placement == {}
    assert any("iOS, macOS 27.0" in note for note in found.notes)
    assert set(made("fp32")[1].weights.values()) == {"float32"}
    assert "cast" not in made("fp32")[1].ops
    assert made("fp32")[1].bytes > found.bytes


def test_what_apples_tools_read_of_the_metadata(made):
    from coreai.authoring import AIModelAsset

    asset = AIModelAsset.load(made("fp16")[0].path)
    about = asset.metadata
    assert (about.author, about.license, about.model_description) == ("the tests", "Apache-2.0", "about the student")
    assert about.creation_date is None
    own = about.creator_defined_metadata
    assert (own["role"], own["version"], own["minimumSystem"]) == ("student", "3", "iOS27")
    function = own["functions"]["main"]
    assert [p["name"] for p in function["inputs"]] == ["latent", "bias"]
    assert function["outputs"] == [
        {"name": "velocity", "shape": [1, 16, 16], "dtype": "float32", "doc": "about velocity"}
    ]  # fmt: skip
    summary = asset.summary(include_statistics=False)
    assert summary is not None
    assert summary.function_names == ["main"]
    assert [name for name, _ in summary.function_inputs("main")] == ["latent", "bias"]
    assert AIModelAsset.is_valid(made("fp16")[0].path)


def export_wide(directory: Path) -> None:
    torch.set_num_threads(1)
    CoreAI().export(wide(), "", "palette4-grouped", directory, OPTIONS)


def test_another_process_writes_the_same_bytes(made, tmp_path: Path):
    there, mine = tmp_path / "there", made("palette4-grouped")[0]
    there.mkdir()
    in_another_process(export_wide, there, printed=tmp_path / "printed")
    assert (tmp_path / "printed").read_text() == ""
    there /= "student.aimodel"
    assert contents(tuple(there.iterdir()), there) == contents(mine.files, mine.path)


def test_inputs_that_are_not_the_functions(made):
    run = TARGET.open(made("fp32")[0].path, threads=1)
    right = arrays(mixed())
    with pytest.raises(BadInput, match=r"got inputs \['latent'\], expected \['latent', 'bias'\]"):
        run({"latent": right["latent"]})
    with pytest.raises(BadInput, match=r"'bias' is float32 \[1, 16\], expected float32 \[1, 1, 16\]"):
        run({**right, "bias": right["bias"][0]})
    assert relative(run(right)["velocity"], reference(mixed())) <= 1e-5  # and the process is still there


def companion_of(asset: Path) -> tuple[multiprocessing.process.BaseProcess, Runner]:
    """A runner and the one process that it started."""
    before = set(multiprocessing.active_children())
    run = TARGET.open(asset, threads=1)
    (process,) = set(multiprocessing.active_children()) - before
    return process, run


def test_a_crash_of_the_runtime_is_one_line(made):
    process, run = companion_of(made("fp32")[0].path)
    os.kill(process.pid, signal.SIGSEGV)
    with pytest.raises(ChildDied, match=r"^student\.aimodel in Apple's runtime: the process was ended by SIGSEGV[^\n]*$"):
        for _ in range(2):  # the first one may still reach the pipe
            run(arrays(mixed()))
    process.join(10)
    assert not process.is_alive()


def test_the_process_ends_with_its_runner(made):
    process, run = companion_of(made("fp32")[0].path)
    del run
    assert not process.is_alive()


def test_what_is_no_asset(tmp_path: Path, made):
    with pytest.raises(BadInput, match="not a Core AI asset"):
        TARGET.describe(tmp_path / "nowhere.aimodel")
    (tmp_path / "bad.aimodel").mkdir()
    (tmp_path / "bad.aimodel" / "main.mlirb").write_bytes(b"\xff" * 64)
    (tmp_path / "bad.aimodel" / "main.hash").write_bytes(hashlib.sha256(b"\xff" * 64).digest())
    (tmp_path / "bad.aimodel" / "metadata.json").write_text(json.dumps({"assetVersion": "2.0"}))
    with pytest.raises(BadInput, match="not a readable Core AI asset"):
        TARGET.open(tmp_path / "bad.aimodel", threads=1)
    short = tmp_path / "short.aimodel"
    shutil.copytree(made("fp32")[0].path, short)
    (short / "main.mlirb").write_bytes((short / "main.mlirb").read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"main\.mlirb does not match main\.hash"):
        TARGET.open(short, threads=1)
    with pytest.raises(BadInput, match="no function 'size_9x9'; it has main"):
        TARGET.describe(made("fp32")[0].path, "size_9x9")
    with pytest.raises(BadInput, match="no function 'size_9x9'; it has main"):
        TARGET.open(made("fp32")[0].path, threads=1, entry="size_9x9")


def test_what_is_not_offered(tmp_path: Path):
    for variant, precision, options in (
        ("ane", "fp16", {}), ("", "int7", {}), ("", "mixed", {}),
        ("", "fp16", {"deployment": "iOS18"}), ("", "fp16", {"units": "all"}),
    ):  # fmt: skip
        with pytest.raises(BadInput, match="coreai: "):
            TARGET.export(mixed(), variant, precision, tmp_path, options)
    with pytest.raises(Refused, match=r"student -> coreai: operation .* of rank 6"):
        TARGET.export(shuffle(), "", "fp16", tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_the_converter_is_one_line_with_its_cause(tmp_path: Path):
    class Unknown(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(RuntimeError, match=r"^student -> coreai: [^\n]+$") as caught:
        TARGET.export(component(Unknown(), {"x": (1, 4)}, ("y", (1, 4))), "", "fp32", tmp_path, {})
    assert caught.value.__cause__ is not None
    with pytest.raises(RuntimeError, match="student -> coreai: outputs of the traced graph are"):
        TARGET.export(dataclasses.replace(mixed(), outputs=running_sum().outputs), "", "fp16", tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_sizes_share_constants_in_one_asset(tmp_path: Path):
    parts = {}
    for size in sizes.SIZES:
        (tmp_path / size).mkdir()
        parts[size] = TARGET.export(sizes.component(size), "", "fp16", tmp_path / size, OPTIONS)
    joined = TARGET.join(parts, tmp_path)
    weight = 2 * 64 * 64
    assert joined.shared_bytes >= weight
    assert joined.bytes <= joined.separate_bytes - 1.9 * weight
    assert [a.entry for a in joined.artifacts.values()] == ["", *(f"size_{s}" for s in list(sizes.SIZES)[1:])]
    for size, artifact in joined.artifacts.items():
        latent = np.random.default_rng(3).standard_normal((1, 64, *sizes.SIZES[size])).astype(np.float32)
        alone = TARGET.open(parts[size].path, threads=1)({"latent": latent})["velocity"]
        got = TARGET.open(artifact.path, threads=1, entry=artifact.entry)({"latent": latent})["velocity"]
        np.testing.assert_array_equal(got, alone)
        assert relative(got, sizes.reference(size, latent)) <= 2e-3
        assert TARGET.describe(artifact.path, artifact.entry).ops == TARGET.describe(parts[size].path).ops
    functions = json.loads((joined.artifacts["8x8"].path / "metadata.json").read_text())["creatorDefinedMetadata"]["functions"]
    assert {name: f["inputs"][0]["shape"][2:] for name, f in functions.items()} == {
        "main": [8, 8], "size_8x12": [8, 12], "size_4x8": [4, 8],
    }  # fmt: skip
    (tmp_path / "again").mkdir()
    again = TARGET.join(parts, tmp_path / "again").artifacts["8x8"]
    assert contents(again.files, again.path) == contents(joined.artifacts["8x8"].files, joined.artifacts["8x8"].path)


class Product(nn.Module):
    """A product over the last axis of the first input."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.matmul(left, right)


@pytest.mark.parametrize(("keys", "parts"), [(128, [128]), (129, [128, 1]), (384, [128])])
def test_long_products_of_halves_are_added_in_parts(keys: int, parts: list[int]):
    """Apple's runtime for Linux adds the products of one bmm one after the other: 4096 ones times ones give 2048."""
    left, right = torch.rand(1, 2, 3, keys).half(), torch.rand(1, 2, keys, 5).half()
    whole = torch.export.export(Product(), (left, right)).run_decompositions()
    made = in_parts(whole)
    assert [n.args[0].meta["val"].shape[2] for n in made.graph.nodes if n.target == torch.ops.aten.bmm.default] == parts
    assert (made is whole) == (keys <= 128)
    torch.testing.assert_close(made.module()(left, right), left @ right, rtol=2e-3, atol=0)


def test_apples_runtime_loses_nothing_of_a_long_product(tmp_path: Path):
    case = component(Product(), {"left": (1, 2, 3, 4096), "right": (1, 2, 4096, 5)}, ("y", (1, 2, 3, 5)))
    ones = dataclasses.replace(case, example=tuple(torch.ones_like(x) for x in case.example))
    path = TARGET.export(ones, "", "fp16", tmp_path, {}).path
    assert (TARGET.open(path, threads=1)(arrays(ones))["y"] == 4096).all()  # in one product 2048


def test_versions_and_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert set(TARGET.versions()) == {"torch", "coreai-torch", "coreai-core", "coreai-opt"}
    TARGET.open(TARGET.export(mixed(), "", "fp32", tmp_path, {}).path, threads=1)(arrays(mixed()))
    assert capfd.readouterr() == ("", "")
