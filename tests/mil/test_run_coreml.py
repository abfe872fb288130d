"""`snapgen-deploy run-coreml`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from snapgen_deploy.cli import app
from tests.mil.mil_harness import TARGETS, Function, Program, ct, mb, save, types


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


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    """y = the sum of all x so far, in a state."""
    inputs = {"x": mb.TensorSpec(shape=(2,), dtype=types.fp16), "total": mb.StateTensorSpec((2,), dtype=types.fp16)}
    with Function(inputs, opset_version=TARGETS[18]) as function:
        total = function.inputs["total"]
        new = mb.add(x=mb.read_state(input=total), y=function.inputs["x"])
        function.set_outputs([mb.identity(x=mb.coreml_update_state(state=total, value=new), name="y")])
    program = Program()
    program.add_function("main", function)
    return save(program, tmp_path / "counter.mlpackage", 18)


@pytest.mark.parametrize("mode", ["fp32", "device"])
def test_states_are_kept_between_calls(counter: Path, tmp_path: Path, mode: str) -> None:
    state, out = tmp_path / "s.npz", tmp_path / "y.npz"
    given = ["--inputs", inputs(tmp_path / "x.npz", 1, 2.5), "--outputs", out, "--mode", mode]
    for wanted in ([1, 2.5], [2, 5], [3, 7.5]):
        assert call(counter, *given, "--state", state).exit_code == 0
        assert np.load(out)["y"].tolist() == np.load(state)["total"].tolist() == wanted
    assert call(counter, *given).exit_code == 0
    assert np.load(out)["y"].tolist() == [1, 2.5], "without --state every call begins with zeros"


def test_states_that_are_not_the_model_s_are_refused_and_left_alone(counter: Path, package: Path, tmp_path: Path) -> None:
    given = ["--inputs", inputs(tmp_path / "x.npz", 1, 2), "--outputs", tmp_path / "y.npz"]
    for arrays, words in (
        ({"total": np.zeros(3, np.float32)}, "state 'total': got float32 [3], expected state float16, shape [2]"),
        ({"other": np.zeros(2, np.float32)}, "got states other; expected total"),
    ):
        np.savez(tmp_path / "s.npz", **arrays)  # type: ignore[arg-type]
        before = (tmp_path / "s.npz").read_bytes()
        result = call(counter, *given, "--state", tmp_path / "s.npz")
        assert result.exit_code == 2
        assert words in result.stderr
        assert (tmp_path / "s.npz").read_bytes() == before
    none = call(package, "--inputs", inputs(tmp_path / "x.npz", 1, 2, 3), *given[2:], "--state", tmp_path / "new.npz")
    assert none.exit_code == 2
    assert "has no states; leave it out" in none.stderr


@pytest.mark.parametrize("classes", [["cat", "dog", "newt"], [4, 2, 9]])
def test_a_classifier(classes: list[Any], tmp_path: Path) -> None:
    class Scores(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.softmax(-1)

    ct.convert(
        torch.export.export(Scores(), (torch.zeros(1, 3),)).run_decompositions({}),
        inputs=[ct.TensorType("x", (1, 3))],
        classifier_config=ct.ClassifierConfig(classes),
        minimum_deployment_target=TARGETS[16],
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    ).save(str(tmp_path / "c.mlpackage"))
    x = np.array([[0.5, 2, -1]], np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    result = call(tmp_path / "c.mlpackage", "--inputs", tmp_path / "x.npz", "--outputs", tmp_path / "y.npz", "--mode", "device")
    assert result.exit_code == 0, result.output
    got = np.load(tmp_path / "y.npz")
    assert got["classLabel"].item() == classes[1]
    (scores,) = (got[name] for name in got.files if name != "classLabel")
    assert scores["class"].tolist() == classes
    wanted = torch.tensor(x).softmax(-1)[0].numpy()
    assert np.allclose(scores["probability"], wanted, atol=1e-3)
    assert f"classLabel: {classes[1]}\n" in result.stdout
    assert f": {classes[1]} {scores['probability'][1]:.4f}, {classes[0]} " in result.stdout


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
