"""The page's own logic in Node.js, held to the bundle's conformance.json."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snapgen_deploy.apps import site as site_module
from snapgen_deploy.apps.site import Site
from snapgen_deploy.bundle.reader import CONFORMANCE
from snapgen_deploy.drawing.pipeline import guided
from snapgen_deploy.runtime.noise import philox_noise

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


def test_guidance_two_encoders_and_an_empty_stream(tmp_path: Path) -> None:
    assert NODE is not None
    latent, steps = (2, 3, 5), ((1.0, 0.6), (0.6, 0.0))
    velocities = np.random.default_rng(0).standard_normal((len(steps), 2, *latent)).astype(np.float32)
    ports = [("latent", (2, *latent)), ("time_features", (2, 4))]
    for stream, length in (("one", 3), ("two", 4), ("gone", 5)):
        ports += [(stream, (2, length, 2)), (f"{stream}_mask", (2, length)), (f"{stream}_pooled", (2, 1))]
    student = {"path": "s", "files": {}, "inputs": [{"name": n, "shape": list(s)} for n, s in ports]}
    rule = {"template": "{} 333", "special_tokens": True, "unknown": "kept", "unknown_token": 0, "pad": 9, "cases": []}
    rules = [
        {**rule, "encoder": "first", "stream": "one", "length": 4, "dropped": 1, "side": "left", "padding_seen": False},
        {**rule, "encoder": "second", "stream": "two", "length": 4, "dropped": 0, "side": "right", "padding_seen": True},
    ]
    manifest = {
        "schema_version": 1,
        "config": {"absent_streams": ["gone"], "student": {"text_streams": [{"name": n} for n in ("one", "two", "gone")]}},
        "guidance": {"scale": 4.0, "negative_prompt": "x"},
        "schedule": {
            "sigmas": [1.0, 0.6, 0.0],
            "shift": 1.0,
            "time_features": {"count": 4, "values": [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]},
        },
        "targets": {"onnx:web": {"components": {"student": student}}},
    }
    given = {"manifest": manifest, "cases": {"format": 1, "tokenizers": rules}, "prompt": "a bb", "negative": "cccc"}
    given["velocities"] = velocities.reshape(len(steps), -1).tolist()
    (tmp_path / "given.json").write_text(json.dumps(given), encoding="utf-8")
    core = Path(site_module.__file__).with_name("page") / "core.mjs"
    done = subprocess.run(
        [NODE, RUNNER.with_name("run_guidance.mjs"), core, tmp_path / "given.json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    expected = philox_noise(5, (1, *latent))
    for (sigma, following), velocity in zip(steps, velocities, strict=True):
        expected = expected + np.float32(following - sigma) * guided(velocity, 1.5)
    np.testing.assert_allclose(said["latent"], expected.reshape(-1), rtol=1e-6, atol=1e-7)
    inputs = {name: np.array(v["data"]).reshape(v["shape"]) for name, v in said["inputs"].items()}
    assert {name: array.shape for name, array in inputs.items()} == dict(ports) | {"one": (2, 4, 2)}
    assert inputs["one_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]  # the first of four is dropped; the prompts have 3 and 2 words
    assert inputs["two_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert inputs["two"][:, 0, 0].tolist() == [1 + 2 + 3 + 9, 4 + 3 + 9 + 9]
    assert inputs["two_pooled"].tolist() == [[-15.0], [-25.0]]
    assert not inputs["gone"].any()
    assert not inputs["gone_pooled"].any()
    assert np.array_equal(inputs["latent"][0], inputs["latent"][1])
    assert said["encoded"] == [3, 3]  # the negative prompt once
