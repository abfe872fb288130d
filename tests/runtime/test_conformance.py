"""Python's runner held to conformance.json, and what it says of one that does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import snapgen_deploy
from snapgen_deploy.bundle.reader import CONFORMANCE, MANIFEST
from snapgen_deploy.errors import BadInput
from snapgen_deploy.runtime.draw import Drawable

LINES = {"tokenizer text_encoder", "noise", "schedule", "call text_encoder", "call student", "call decoder", "picture"}


def test_every_line_passes(bundle: Path) -> None:
    lines = snapgen_deploy.open_bundle(bundle, threads=1).conformance()
    assert [line for line in lines if not line.passed] == []
    assert {line.line for line in lines} == LINES
    assert any("refused: long" in line.detail for line in lines)
    assert any("refused: unknown" in line.detail for line in lines)
    assert float(lines[-1].detail.split()[0]) >= 80


def shifted(part: list[float]) -> None:
    part[0] += 1e-3


CHANGES: dict[str, tuple[Callable[[Any], object], set[str]]] = {
    "a token": (lambda c: shifted(c["tokenizers"][0]["cases"][0]["tokens"]), {"tokenizer text_encoder"}),
    "an unknown word": (lambda c: c["tokenizers"][0]["cases"][0].update(refused="unknown"), {"tokenizer text_encoder"}),
    "noise": (lambda c: shifted(c["noise"]["cases"][1]["last"]), {"noise"}),
    "its mean": (lambda c: c["noise"]["cases"][0].update(mean=0.5), {"noise"}),
    "a level": (lambda c: c["schedule"]["steps"][1].update(next=0.7), {"schedule"}),
    "a feature": (lambda c: shifted(c["schedule"]["steps"][1]["time_features"]["first"]), {"schedule"}),
    "coefficients": (lambda c: c["schedule"]["steps"][0].update(coefficients=[1.0, 0.5, 0.0]), {"schedule"}),
    "another call": (lambda c: c["calls"][1]["inputs"]["time_features"][0].update(step=2), {"call student"}),
    "a limit": (lambda c: c["picture"]["psnr"].update({"onnx:web": 199.0}), {"picture"}),
    "a seed": (lambda c: c["picture"].update(seed="77"), {"picture"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_line_that_fails_is_named(name: str, bundle: Path) -> None:
    opened = snapgen_deploy.open_bundle(bundle, threads=1)
    change, named = CHANGES[name]
    change(opened.cases)
    assert {line.line for line in opened.conformance() if not line.passed} == named


class Other:
    """A session whose outputs are changed."""

    def __init__(self, session: Any, change: Callable[[np.ndarray], np.ndarray]) -> None:
        self.session, self.change = session, change

    def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [self.change(one) for one in self.session.run(names, inputs)]


@pytest.mark.parametrize("factor", [1.1, np.nan])
def test_a_component_that_computes_otherwise(factor: float, bundle: Path) -> None:
    whole = snapgen_deploy.open_bundle(bundle, threads=1)
    sessions = {**whole._sessions, "decoder": Other(whole._sessions["decoder"], lambda x: x * np.float32(factor))}
    lines = Drawable(bundle, whole.manifest, whole.target, sessions).conformance()
    assert {line.line for line in lines if not line.passed} == {"call decoder", "picture"}


def test_other_test_vectors_are_refused(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "b"
    shutil.copytree(bundle, copy)
    name = json.loads((copy / CONFORMANCE).read_text(encoding="utf-8"))["vectors"]
    content = bytearray((copy / name).read_bytes())
    content[-1] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BadInput, match=f"{name} is not the exported file"):
        snapgen_deploy.open_bundle(copy).conformance()
    assert name in json.loads((copy / MANIFEST).read_text(encoding="utf-8"))["files"]


def test_rows_are_those_of_the_library(bundle: Path) -> None:
    """safetensors' own reader gives the same arrays."""
    from safetensors.numpy import load_file

    from snapgen_deploy.runtime.conformance import _Vectors

    opened = snapgen_deploy.open_bundle(bundle)
    vectors = _Vectors(opened)
    for name, array in load_file(bundle / opened.cases["vectors"]).items():
        got = vectors.rows([{"array": name, "index": [i]} for i in range(len(array))])
        assert got.dtype == array.dtype
        assert np.array_equal(got, array)
