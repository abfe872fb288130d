"""`snapgen_deploy.open_bundle`: it draws what `generate` draws, from several threads, and without torch."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import snapgen_deploy
from snapgen_deploy.bundle.draw import WantedPicture, draw
from snapgen_deploy.bundle.reader import CONFORMANCE, open_bundle
from snapgen_deploy.drawing.pipeline import guided
from snapgen_deploy.errors import BadInput, SnapgenError
from snapgen_deploy.runtime.draw import Drawable, GivenUp
from snapgen_deploy.runtime.noise import philox_noise
from snapgen_deploy.runtime.prompt import RuleReader
from snapgen_deploy.runtime.record import PictureRecord

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
# What may be imported, and what these import of the packages that they ask for.
ALLOWED = ("snapgen_deploy", "numpy", "onnxruntime", "tokenizers", "PIL")


def test_it_draws_what_generate_draws(bundle: Path, tmp_path: Path) -> None:
    opened, told = snapgen_deploy.open_bundle(bundle, threads=1), []
    picture = opened.draw("a red ring", 7, progress=lambda done, count: told.append((done, count)))
    (expected,) = draw(open_bundle(bundle), "onnx:web", [WantedPicture("a red ring", 7)], 1)
    assert np.abs(picture.pixels.astype(int) - expected).max() <= 1
    assert told == [(i, 6) for i in range(1, 7)]
    assert (opened.size, opened.steps, opened.target, picture.seed) == ((64, 64), 4, "onnx:web", 7)
    picture.save(tmp_path / "picture.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "picture.png")), picture.pixels)


def test_threads_share_one(bundle: Path) -> None:
    opened = snapgen_deploy.open_bundle(str(bundle), threads=1)
    wanted = [(prompt, seed) for seed in range(3) for prompt in ("a red ring", "a blue ring on gray")]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda one: opened.draw(*one), wanted))
    for picture, (prompt, seed) in zip(together, wanted, strict=True):
        assert np.array_equal(picture.pixels, opened.draw(prompt, seed).pixels)


def test_what_cannot_be_drawn_is_refused(bundle: Path, tmp_path: Path) -> None:
    opened = snapgen_deploy.open_bundle(bundle)
    for prompt, seed, said in (
        (" ", 0, "an empty text"),
        ("a red ring", 2**63, "below 2"),
        ("a red ring", -1, "below 2"),
        ("a red zebra", 0, "does not know the words 'zebra'"),
        ("ring " * 20, 0, "has 22 tokens, at most 16 fit"),
    ):
        with pytest.raises(BadInput, match=said):
            opened.draw(prompt, seed)
    with pytest.raises(BadInput, match="has no guidance"):
        opened.draw("a red ring", guidance=2.0)
    with pytest.raises(GivenUp):
        opened.draw("a red ring", stop=lambda: True)
    with pytest.raises(BadInput, match="holds no target coreml that onnxruntime runs on the processor"):
        snapgen_deploy.open_bundle(bundle, target="coreml")
    with pytest.raises(BadInput, match="cannot be read"):
        snapgen_deploy.open_bundle(tmp_path)
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + " ")
    with pytest.raises(BadInput, match="tokenizer.json is not the exported file"):
        snapgen_deploy.open_bundle(copy)
    with pytest.raises(AttributeError, match="no attribute 'open_window'"):
        _ = snapgen_deploy.open_window  # type: ignore[attr-defined]


class Recorded:
    """A session that gives what `answer` makes of its inputs."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.calls = answer, []

    def run(self, names: list[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        self.calls.append(dict(inputs))
        return [self.answer(inputs)]


def test_guidance_and_an_empty_stream(bundle: Path, tmp_path: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    manifest["guidance"] = {"scale": 3.0, "negative_prompt": "blue"}
    manifest["config"]["absent_streams"] = ["gone"]
    manifest["targets"]["onnx:web"]["components"]["student"]["inputs"] += [
        {"name": "gone", "shape": [2, 3, 5]},
        {"name": "gone_mask", "shape": [2, 3]},
    ]
    rng = np.random.default_rng(0)
    velocities = rng.standard_normal((4, 2, *manifest["latent"]["shape"])).astype(np.float32)
    encoder = Recorded(lambda x: np.full((1, 16, 16), x["tokens"].sum(), np.float32))
    student = Recorded(lambda x: velocities[len(student.calls) - 1])
    decoder = Recorded(lambda x: np.zeros((1, 3, 64, 64), np.float32))
    opened = Drawable(bundle, manifest, "onnx:web", {"text_encoder": encoder, "student": student, "decoder": decoder})
    opened.draw("a red ring", 5, guidance=1.5)
    latent, sigmas = philox_noise(5, (1, *manifest["latent"]["shape"])), manifest["schedule"]["sigmas"]
    for i, call in enumerate(student.calls):
        assert np.array_equal(call["latent"], np.concatenate([latent, latent]))
        assert call["text"].shape == (2, 16, 16)
        assert not np.array_equal(call["text"][0], call["text"][1])
        assert (call["gone"].shape, call["gone_mask"].shape, call["gone"].any()) == ((2, 3, 5), (2, 3), np.False_)
        latent = latent + np.float32(sigmas[i + 1] - sigmas[i]) * guided(velocities[i], 1.5)
    assert np.allclose(decoder.calls[0]["latent"], latent, atol=1e-6)
    student.calls.clear()
    opened.draw("a red ring", 6)
    assert len(encoder.calls) == 3  # the negative prompt was encoded once


def test_tokens_are_those_of_the_cases(bundle: Path) -> None:
    (rule,) = json.loads((bundle / CONFORMANCE).read_text(encoding="utf-8"))["tokenizers"]
    left = RuleReader({**rule, "side": "left", "padding_seen": True}, bundle / rule["file"])
    tokens, mask = left.read("a red ring")
    assert tokens[0].tolist() == [0] * 11 + [1, 4, 5, 7, 2]
    assert mask[0].all()
    reader = RuleReader(rule, bundle / rule["file"])
    for case in rule["cases"]:
        if "refused" in case:
            with pytest.raises(BadInput):
                reader.read(case["text"])
        else:
            tokens, mask = reader.read(case["text"])
            assert (tokens[0].tolist(), mask[0].tolist()) == (case["tokens"], case["mask"])


def test_one_line_for_each_picture(bundle: Path, tmp_path: Path) -> None:
    record = tmp_path / "pictures.jsonl"
    opened = snapgen_deploy.open_bundle(bundle, record=record)
    opened.draw("a red ring", seed=2**63 - 1)
    for prompt, stop in (("a red zebra", None), ("ring " * 20, None), (" ", None), ("a red ring", lambda: True)):
        with pytest.raises(SnapgenError):
            opened.draw(prompt, stop=stop)
    first, *others = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    assert (first["app"], first["bundle"], first["target"], first["precision"]) == ("python", "tiny-test", "onnx:web", "fp32")
    assert (first["ok"], first["seed"], first["steps"], len(first["ms"]["steps"])) == (True, str(2**63 - 1), 4, 4)
    assert first["ms"]["all"] >= sum(first["ms"]["steps"]) + first["ms"]["decode"] - 6  # each is rounded
    assert first["memory"]["process"] > 10**7
    assert [one["why"] for one in others] == ["unknown", "long", "empty", "cancelled"]
    assert not any("prompt" in one for one in (first, *others))
    kept = PictureRecord(record, kept=2)
    kept.add({"app": "x"})
    assert [json.loads(line)["app"] for line in kept.lines()] == ["python", "x"]
    with pytest.raises(BadInput, match="cannot be written"):
        PictureRecord(tmp_path / "missing" / "x.jsonl").add({})


def test_it_needs_neither_torch_nor_the_command_line(bundle: Path, tmp_path: Path) -> None:
    page = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    assert '"bundles/shapes-web"' in page
    page = page.replace('"bundles/shapes-web"', repr(str(bundle))).replace("a red ring left of a blue square", "a red ring")
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in {ALLOWED} and top not in sys.stdlib_module_names and not top.startswith("_"):
            raise ImportError(f"{{name}} is not installed")
sys.meta_path.insert(0, Blocked())
{page}
assert not [name for name in sys.modules if name.startswith(("torch", "snapgen_deploy.cli", "snapgen_deploy.models"))]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "ring.png").size == (64, 64)
