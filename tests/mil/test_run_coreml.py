"""`snapgen-deploy run-coreml`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from snapgen_deploy.cli import app
from tests.mil.mil_harness import TARGETS, Function, Program, mb, save, types


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = 100 x in half precision."""
    with Function({"x": mb.TensorSpec(shape=(3,), dtype=types.fp16)}, opset_version=TARGETS[16]) as function:
        function.set_outputs([mb.mul(x=function.inputs["x"], y=np.float16(100), name="y")])
    program = Program()
    program.add_function("main", function)
    return save(program, tmp_path_factory.mktemp("cli") / "p.mlpackage", 16)


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["run-coreml", *map(str, arguments)])


def inputs(path: Path, *values: float) -> Path:
    np.savez(path, x=np.array(values, np.float32))
    return path


def test_results_are_written(package: Path, tmp_path: Path) -> None:
    out = tmp_path / "y.out"
    result = call(package, "--inputs", inputs(tmp_path / "x.npz", 1, 2, 1000), "--outputs", out)
    assert result.exit_code == 0
    assert "y: float32 [3], 100 ... 100000" in result.stdout
    assert np.load(out)["y"].tolist() == [100, 200, 100000]


def test_device_report(package: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    given = inputs(tmp_path / "x.npz", 1, 2, 1000)
    result = call(package, "--inputs", given, "--outputs", tmp_path / "y.npz", "--mode", "device", "--report", report)
    assert result.exit_code == 1
    assert "half precision: overflow in 1 of 2 operations" in result.stdout
    data = json.loads(report.read_text())
    assert data["overflowed"] is True
    assert data["clean"] is False
    assert [(o["op"], o["overflow"]) for o in data["ops"]] == [("input", 0), ("mul", 1)]
    assert data["tightest"][0]["output"] == "y"
    assert np.isinf(np.load(tmp_path / "y.npz")["y"]).tolist() == [False, False, True]


def test_json(package: Path, tmp_path: Path) -> None:
    given = inputs(tmp_path / "x.npz", 1, 2, 3)
    result = call(package, "--inputs", given, "--outputs", tmp_path / "y.npz", "--mode", "device", "--json")
    data = json.loads(result.stdout)
    assert data["outputs"] == {"y": {"dtype": "float16", "shape": [3]}}
    assert data["device"]["clean"] is True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"package": "none.mlpackage"}, "no such .mlpackage"),
        ({"inputs": "none.npz"}, "cannot be read"),
        ({"inputs": "text.npz"}, "cannot be read"),
        ({"inputs": "single.npy"}, "holds one array"),
        ({"inputs": "pickle.npz"}, "cannot be read"),
        ({"inputs": "short.npz"}, "[2]"),
        ({"outputs": "nowhere/y.npz"}, "expected a file in a folder that exists"),
        ({"more": ["--function", "other"]}, "no function 'other'; it has main"),
        ({"more": ["--report", "r.json"]}, "--report needs --mode device"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    change: dict[str, Any], words: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.npz").write_text("hello")
    np.save("single.npy", np.zeros(3))
    np.savez("pickle.npz", x=np.array([{"code": 1}], object))
    inputs(Path("short.npz"), 1, 2)
    chosen = {"package": package, "inputs": inputs(Path("x.npz"), 1, 2, 3), "outputs": "y.npz", "more": []} | change
    result = call(chosen["package"], "--inputs", chosen["inputs"], "--outputs", chosen["outputs"], *chosen["more"])
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert words in lines[0]
    assert not Path("y.npz").exists()
