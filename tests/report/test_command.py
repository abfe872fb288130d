"""The command: what it writes, and that bad input ends in one line and leaves nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from snapgen_deploy.cli.console import report_error
from snapgen_deploy.cli.report import report as command
from snapgen_deploy.errors import BadInput
from snapgen_deploy.report import collect, render
from tests.report.report_cases import gate, make_bundle, make_comparison, make_measurement, metric


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def run(*arguments: object) -> Result:
    app = typer.Typer()

    @app.command()
    def other() -> None:
        """A second command, so that typer makes a group of them."""

    app.command("report")(command)
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    bundle, out = make_bundle(tmp_path / "b"), tmp_path / "out.html"
    out.write_text("older")
    done = run(bundle, "-o", out, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["verdict"] == "passed"
    assert out.read_text(encoding="utf-8") == render(collect([bundle]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "out.html"]


@pytest.mark.parametrize(
    "changes",
    [
        {"gates": [{"target": "x"}]},
        {"gates": [gate("coreml", "x", "psnr", float("inf"), 1.0, "passed")]},
        {"gates": [gate("coreml", "x", "psnr", 1.0, 1.0, "surely")]},
        {"targets": {}},
        {"targets": None},
        {"resolution": [0, 0]},
        {"resolution": "large"},
        {"device": "phone"},
        {"prompts": 3},
        {"estimates": [{"target": "coreml", "ms": -1}]},
    ],
)
def test_a_malformed_manifest_is_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    bundle = make_bundle(tmp_path / "b")
    write(bundle / "manifest.json", json.loads((bundle / "manifest.json").read_text(encoding="utf-8")) | changes)
    out = tmp_path / "out.html"
    with pytest.raises(BadInput, match=str(bundle)) as caught:
        collect([bundle])
    assert "\n" not in str(caught.value)
    done = run(bundle, "-o", out)
    assert isinstance(done.exception, BadInput)
    assert report_error(caught.value, traceback=False) == 2
    assert not out.exists()


@pytest.mark.parametrize("name", ["nothing.json", "list.json", "other.json", "broken.json", "binary.json"])
def test_malformed_records_are_one_line(tmp_path: Path, name: str) -> None:
    bundle, path = make_bundle(tmp_path / "b"), tmp_path / name
    texts = {"list.json": b"[1]", "other.json": b'{"kind": "poem"}', "broken.json": b"{", "binary.json": b"\xff\xfe\x00"}
    if name in texts:
        path.write_bytes(texts[name])
    with pytest.raises(BadInput, match=name):
        collect([bundle], [path])
    with pytest.raises(BadInput, match=name):
        collect([bundle], (), [path])


@pytest.mark.parametrize(
    "changes", [{"metrics": [{}]}, {"metrics": [metric(change=float("nan"))]}, {"guards": [1]}, {"key": 3}, {"base": "b"}]
)
def test_malformed_comparisons_are_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="c.json"):
        collect([make_bundle(tmp_path / "b")], (), [write(tmp_path / "c.json", make_comparison(**changes))])


@pytest.mark.parametrize("sample", ["fast", float("nan"), float("inf"), None, True])
def test_samples_that_are_no_numbers_are_one_line(tmp_path: Path, sample: Any) -> None:
    record = make_measurement().as_dict()
    record["rounds"][0]["samples"]["e2e"] = [sample]
    with pytest.raises(BadInput, match="m.json"):
        collect([make_bundle(tmp_path / "b")], [write(tmp_path / "m.json", record)])


def test_a_broken_picture_and_a_place_that_is_not_there(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    done = run(bundle, "-o", tmp_path / "nowhere" / "out.html")
    assert isinstance(done.exception, BadInput)
    (bundle / "preview.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(BadInput, match="not a readable picture"):
        collect([bundle])
