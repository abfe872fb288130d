"""The examples in docs/formats.md are read as they stand there."""

import re
from pathlib import Path

import numpy as np
import pytest

from snapgen_deploy.check.fidelity import points_of
from snapgen_deploy.checkpoint.keymap import load_key_map
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.drawing.prompts import Sample, read_samples

TEXT = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")


def example(language, number=0):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)[number]


def test_the_profile(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(example("toml"), encoding="utf-8")
    profile = load_profile(str(path))
    assert profile.memory_budget_bytes == 10**9
    assert [t.key for t in profile.targets] == ["executorch:xnnpack"]
    assert [o.target.key for o in profile.offers] == ["executorch:vulkan"]
    assert profile.guards == ("placement", "weight_dtypes")


KEY_MAPS = [  # our names of their names, for both examples of the page
    (
        {
            "net.patch.weight": ["student.patch.weight"],
            "net.3.q.weight": ["student.down.3.attention.q.weight"],
            "net.9.kv.weight": ["student.middle.1.cross.k.weight", "student.middle.1.cross.v.weight"],
            "net.0.norm.weight": ["student.down.0.attention.q_norm.weight"],
            "step": [],
        }
    ),
    {"ema.x": [], "vae.decoder.a": ["decoder.a"], "net.stage0.3.q.weight": ["student.down.3.q.weight"]},
]


@pytest.mark.parametrize("number", [0, 1])
def test_the_key_map(tmp_path, number):
    path = tmp_path / "map.toml"
    path.write_text(example("toml", 1 + number), encoding="utf-8")
    names = KEY_MAPS[number]
    expected = {ours: (2, 2) for listed in names.values() for ours in listed}
    assert set(load_key_map(path).recipes(names, expected)) == set(expected)


def test_the_prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(example("text"), encoding="utf-8")
    assert [s.seed for s in read_samples(path, 100)] == [100, 7]


@pytest.mark.parametrize("bright", [False, True])
def test_the_scorer(tmp_path, monkeypatch, bright):
    (tmp_path / "scorer_of_the_formats.py").write_text(example("python"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    picture = np.full((4, 4, 3), 200 * bright, np.uint8)
    assert points_of("scorer_of_the_formats.py:points", [Sample("a", 0)], [picture]) == [[float(bright), 1.0]]
