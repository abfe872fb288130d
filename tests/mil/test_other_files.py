"""What is no .mlpackage with an ML Program: each is one line that says what it is, what was expected and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from snapgen_deploy.cli import app
from snapgen_deploy.export.mil import PackageError, open_package
from tests.mil.mil_harness import TARGETS, Function, Program, ct, mb, save

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weight = np.arange(1600, dtype=np.float32).reshape(40, 40)
    with Function({"x": mb.TensorSpec(shape=(1, 40))}, opset_version=TARGETS[16]) as function:
        function.set_outputs([mb.linear(x=function.inputs["x"], weight=weight, name="y")])
    program = Program()
    program.add_function("main", function)
    return save(program, tmp_path_factory.mktemp("files") / "p.mlpackage", 16)


def neural_network(package: Path, folder: Path) -> Path:
    model = ct.proto.Model_pb2.Model(specificationVersion=4)
    model.neuralNetwork.SetInParent()
    path = folder / "a.mlmodel"
    path.write_bytes(model.SerializeToString())
    return path


def zipped(package: Path, folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder / "p.mlpackage"), "zip", package.parent, package.name))


def compiled(package: Path, folder: Path) -> Path:
    path = folder / "p.mlmodelc"
    path.mkdir()
    (path / "coremldata.bin").write_bytes(b"\0" * 8)
    return path


def around(package: Path, folder: Path) -> Path:
    shutil.copytree(package, folder / "p" / "p.mlpackage")
    return folder / "p"


def pointer_to_it(package: Path, folder: Path) -> Path:
    path = folder / "p.mlpackage"
    path.write_text(POINTER)
    return path


def pointer_within(name: str) -> Callable[[Path, Path], Path]:
    def make(package: Path, folder: Path) -> Path:
        path = shutil.copytree(package, folder / "p.mlpackage")
        next(path.rglob(name)).write_text(POINTER)
        return path

    return make


def text(package: Path, folder: Path) -> Path:
    path = folder / "notes.txt"
    path.write_text("hello")
    return path


FILES = {
    "mlmodel": (neural_network, "got a .mlmodel file, expected a .mlpackage directory with an ML Program; convert it again"),
    "zip": (zipped, "got a zip archive, expected a .mlpackage directory; unpack it"),
    "mlmodelc": (compiled, "got a compiled model (.mlmodelc), expected the .mlpackage that it was compiled from"),
    "folder around": (around, "got a directory around p.mlpackage, expected the .mlpackage itself; give "),
    "pointer": (pointer_to_it, "p.mlpackage: got a Git LFS pointer, expected the file that it stands for; run `git lfs pull`"),
    "pointer to weights": (pointer_within("weight.bin"), "weight.bin: got a Git LFS pointer"),
    "pointer to the model": (pointer_within("model.mlmodel"), "model.mlmodel: got a Git LFS pointer"),
    "pointer to the manifest": (pointer_within("Manifest.json"), "Manifest.json: got a Git LFS pointer"),
    "text": (text, "notes.txt: got a file, expected a .mlpackage directory"),
}


DOCTORS = sorted(FILES.keys() - {"text", "folder around"})  # doctor takes bundles too, and says so of these


@pytest.mark.parametrize(
    ("name", "command"), [*((name, "run-coreml") for name in FILES), *((name, "doctor") for name in DOCTORS)]
)
def test_each_is_one_line_and_exit_code_2(name: str, command: str, package: Path, tmp_path: Path) -> None:
    make, words = FILES[name]
    path = make(package, tmp_path)
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 40), np.float32))
    more = ["--inputs", str(tmp_path / "x.npz"), "--outputs", str(tmp_path / "y.npz")] if command == "run-coreml" else []
    result = CliRunner().invoke(app, [command, str(path), *more])
    assert result.exit_code == 2, result.output
    (line,) = (line for line in result.stderr.splitlines() if line)
    assert line.startswith("error: ")
    assert words in line


KINDS = {
    "neuralNetworkClassifier": "convert it again with coremltools and convert_to='mlprogram'",
    "pipeline": "save each of its models as a package of its own",
    "treeEnsembleRegressor": "only Core ML on a Mac runs this kind",
    "glmClassifier": "only Core ML on a Mac runs this kind",
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_model_say_what_to_do(kind: str, tmp_path: Path) -> None:
    model: Any = ct.proto.Model_pb2.Model(specificationVersion=4)
    getattr(model, kind).SetInParent()
    data = tmp_path / "k.mlpackage" / "Data"
    data.mkdir(parents=True)
    (data / "model.mlmodel").write_bytes(model.SerializeToString())
    manifest = {"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "model.mlmodel"}}}
    (data.parent / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PackageError) as error:
        open_package(data.parent)
    assert f"holds a {kind}, expected an ML Program; {KINDS[kind]}" in str(error.value)
