from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from snapgen_deploy.bundle.reader import write_manifest
from snapgen_deploy.cli.doctor import doctor
from snapgen_deploy.errors import BadInput
from tests.lint.lint_cases import CASES, clean
from tests.manifests import component, files_of, least_manifest

app = typer.Typer()
app.command()(doctor)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "110"})


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packages")
    clean(root / "clean.mlpackage")
    CASES["constant-range"](root / "masked.mlpackage")
    CASES["gather-scatter"](root / "lookup.mlpackage")
    return root


@pytest.fixture
def bundle(packages: Path, tmp_path: Path) -> Path:
    """A bundle of two Core ML components and an ONNX one."""
    root = tmp_path / "shapes-phone"
    roles = {"student": "clean.mlpackage", "text_encoder": "lookup.mlpackage"}
    components = {}
    for role, name in roles.items():
        shutil.copytree(packages / name, root / "coreml" / f"{role}.mlpackage")
        components[role] = component(f"coreml/{role}.mlpackage")
    targets = {"coreml": components, "onnx:cpu": {"student": component("onnx/student.onnx")}}
    manifest = least_manifest(targets, device={"id": "phone", "name": "A phone", "memory_budget": 10_000_000})
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


def test_a_clean_package_exits_0(packages: Path) -> None:
    result = run(packages / "clean.mlpackage")
    assert result.exit_code == 0, result.output
    assert "clean.mlpackage: nothing to fix" in result.output
    assert "placement: " in result.output


def test_a_warning_exits_0_and_an_error_exits_1(packages: Path) -> None:
    warned = run(packages / "lookup.mlpackage")
    assert warned.exit_code == 0, warned.output
    assert "gather-scatter" in warned.output
    failed = run(packages / "masked.mlpackage")
    assert failed.exit_code == 1, failed.output
    assert "constant-range" in failed.output
    assert "holds -inf" in failed.output
    assert max(len(line) for line in failed.output.splitlines()) <= 110


def test_verbose_gives_reasons_and_sources(packages: Path) -> None:
    assert "https://" not in run(packages / "lookup.mlpackage").output
    assert "https://github.com/apple/coremltools/issues/1103" in run(packages / "lookup.mlpackage", "-v").output


def test_json_is_one_object_and_nothing_else(packages: Path) -> None:
    result = run(packages / "masked.mlpackage", "--json")
    assert result.exit_code == 1
    component = json.loads(result.stdout)["components"]["masked.mlpackage"]
    assert component["counts"] == {"constant-range": 2}
    assert component["findings"][0]["examples"][0]["note"] == "holds -inf"
    assert component["placement"]["status"] in ("read", "not_run")


def test_a_bundle_is_examined_whole(bundle: Path) -> None:
    result = run(bundle, "--json")
    assert result.exit_code == 0, result.output
    components = json.loads(result.stdout)["components"]
    assert {name: c["counts"] for name, c in components.items()} == {
        "student (coreml)": {},
        "text_encoder (coreml)": {"gather-scatter": 1},
    }


def test_a_bundle_that_is_not_what_was_exported_is_examined_and_told(bundle: Path) -> None:
    write_manifest(bundle, json.loads((bundle / "manifest.json").read_text()) | {"files": files_of(bundle)})
    sound = run(bundle, "--json")
    assert (json.loads(sound.stdout)["changes"], sound.stderr) == ("", "")
    with (bundle / "coreml" / "student.mlpackage" / "Manifest.json").open("a") as file:
        file.write("\n")
    changed = run(bundle, "--json")
    assert changed.exit_code == 0
    assert "changed coreml/student.mlpackage/Manifest.json" in json.loads(changed.stdout)["changes"]
    assert "for the files as they are now" in " ".join(changed.stderr.split())


def test_core_ml_inside_an_executorch_program_is_examined(tmp_path: Path) -> None:
    from snapgen_deploy.export.executorch.coreml import ExecuTorchCoreML
    from snapgen_deploy.export.executorch.target import ExecuTorch
    from tests.export.graph_cases import mixed

    made = ExecuTorchCoreML().export(mixed(), "coreml", "fp16", tmp_path, {})
    alone = run(made.path, "--json")
    assert alone.exit_code == 0, alone.output
    found = json.loads(alone.stdout)["components"]
    assert list(found) == ["student.pte"]
    manifest = least_manifest({"executorch:coreml": {"student": component("student.pte")}})
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    bundle = json.loads(run(tmp_path, "--json").stdout)["components"]
    assert bundle["student (executorch:coreml)"]["counts"] == found["student.pte"]["counts"]
    (tmp_path / "other").mkdir()
    other = ExecuTorch().export(mixed(), "xnnpack", "fp32", tmp_path / "other", {})
    assert "no part of it is for the Core ML delegate" in str(run(other.path).exception)


def test_the_memory_limit_is_in_megabytes(bundle: Path) -> None:
    assert json.loads(run(bundle, "--json").stdout)["memory_limit"] == 10_000_000  # the bundle's own
    assert run(bundle, "--memory-limit", "1").exit_code == 0
    tight = run(bundle, "--memory-limit", "0.05", "--json")
    assert tight.exit_code == 1
    assert json.loads(tight.stdout)["memory_limit"] == 50_000
    assert json.loads(tight.stdout)["components"]["student (coreml)"]["counts"] == {"weights-over-limit": 1}


def test_what_holds_no_package_is_refused(tmp_path: Path, bundle: Path) -> None:
    for path, words in ((tmp_path / "none", "does not exist"), (tmp_path, "is not a bundle")):
        error = run(path).exception
        assert isinstance(error, BadInput)
        assert words in str(error)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest |= {"target_order": ["onnx:cpu"], "targets": {"onnx:cpu": {"precision": "fp32", "components": {}}}}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    error = run(bundle).exception
    assert isinstance(error, BadInput)
    assert "holds no Core ML package" in str(error)


def test_an_asset_that_a_compiled_bundle_misses_is_an_error(bundle: Path) -> None:
    student = bundle / "coreml" / "student.mlpackage"
    compiled = student.with_suffix(".mlmodelc")
    shutil.rmtree(student)
    compiled.mkdir()
    (compiled / "model.mil").write_text('BLOBFILE(path = tensor<string, []>("@model_path/weights/weight.bin"), offset = 64)')
    result = run(bundle, "--json")
    assert result.exit_code == 1, result.output
    components = json.loads(result.stdout)["components"]
    (finding,) = components.pop(bundle.name)["findings"]
    assert finding["rule"] == "missing-asset"
    assert [(e["output"], e["note"]) for e in finding["examples"]] == [
        ("coreml/student.mlpackage", "student.mlmodelc is there"),
        ("coreml/student.mlmodelc/weights/weight.bin", "model.mil reads it"),
    ]
    assert list(components) == ["text_encoder (coreml)"]  # what is there is looked at
    (compiled / "weights").mkdir()
    (compiled / "weights" / "weight.bin").touch()
    assert json.loads(run(bundle, "--json").stdout)["components"][bundle.name]["counts"] == {"missing-asset": 1}
