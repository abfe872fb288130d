"""The page's own logic in Node.js, held to the bundle's conformance.json."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from snapgen_deploy.apps.site import Site
from snapgen_deploy.bundle.reader import CONFORMANCE

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="no Node.js here")
RUNNER = Path(__file__).with_name("run_conformance.mjs")


@pytest.fixture(scope="module")
def written(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    for name, content in site.files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            place.write_bytes(content)
        else:
            place.symlink_to(content)
    return folder


def lines(site: Path, cases: Path) -> list[dict[str, Any]]:
    assert NODE is not None
    done = subprocess.run([NODE, RUNNER, site, cases], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_line_passes(written: Path) -> None:
    found = lines(written, written / "bundle" / CONFORMANCE)
    assert [line for line in found if not line["passed"]] == []
    assert {line["line"] for line in found} == {
        "tokenizer text_encoder", "noise", "schedule", "call text_encoder", "call student", "call decoder", "picture",
    }  # fmt: skip
    assert any("refused: long" in line["detail"] for line in found)
    assert any("refused: unknown" in line["detail"] for line in found)
    decibels = float(found[-1]["detail"].split()[0])
    assert decibels >= 80


def test_the_line_that_fails_is_named(written: Path, tmp_path: Path) -> None:
    cases = json.loads((written / "bundle" / CONFORMANCE).read_text(encoding="utf-8"))
    cases["tokenizers"][0]["cases"][1]["tokens"][2] += 1
    cases["noise"]["cases"][2]["last"][3] += 1e-3
    cases["schedule"]["steps"][1]["next"] = 0.7
    cases["calls"][1]["error"]["onnx:web"] = 1e-9
    cases["picture"]["psnr"]["onnx:web"] = 199.0
    (tmp_path / CONFORMANCE).write_text(json.dumps(cases), encoding="utf-8")
    failed = [line for line in lines(written, tmp_path / CONFORMANCE) if not line["passed"]]
    assert [line["line"] for line in failed] == ["tokenizer text_encoder", "noise", "schedule", "call student", "picture"]
    assert "a blue ring on gray" in failed[0]["detail"]
    assert "4294967296" in failed[1]["detail"]
