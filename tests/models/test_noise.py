"""Noise that every language can make: Philox4x32-10 and Box-Muller, held to published vectors and to the page in docs."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from snapgen_deploy.models.noise import GENERATORS, PHILOX, philox4x32, philox_noise

PAGE = Path(__file__).parents[2] / "docs" / "noise.md"
# Known answers of Random123, the library of the paper's authors (kat_vectors): counter, key, words.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_published_words(counter: str, key: str, answer: str) -> None:
    first, second = words(key)
    assert philox4x32(np.array([words(counter)], np.uint32), (first, second))[0].tolist() == words(answer)


def exact(seed: int, index: int) -> float:
    """One number in Python's own arithmetic, from the words."""
    key = (seed & 0xFFFFFFFF, seed >> 32)
    drawn = [int(w) >> 8 for w in philox4x32(np.array([[index // 4, 0, 0, 0]], np.uint32), key)[0]]
    u, v = drawn[index % 4 // 2 * 2 : index % 4 // 2 * 2 + 2]
    turn = math.cos if index % 2 == 0 else math.sin
    return math.sqrt(-2.0 * math.log((u + 1) / 2**24)) * turn(2.0 * math.pi * v / 2**24)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**63 - 1])
def test_each_number_is_the_formula_s(seed: int) -> None:
    noise = philox_noise(seed, (1, 3, 5, 7))  # 105 numbers: the last counter gives one of its four
    assert noise.dtype == np.float32
    expected = [exact(seed, i) for i in range(noise.size)]
    np.testing.assert_allclose(noise.reshape(-1), expected, rtol=4e-7, atol=1e-7)  # four roundings to float32


def test_it_is_standard_normal_and_seeds_are_independent() -> None:
    a, b = philox_noise(1, (200_000,)), philox_noise(2, (200_000,))
    assert stats.kstest(a, "norm").pvalue > 0.001
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(a.size)
    assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 5 / math.sqrt(a.size)
    assert np.isfinite(a).all()


def test_a_larger_latent_begins_as_a_smaller_one() -> None:
    assert np.array_equal(philox_noise(5, (10,)), philox_noise(5, (1000,))[:10])


def test_every_generator_gives_the_shape() -> None:
    for make in GENERATORS.values():
        assert make(3, (1, 4, 6, 10)).shape == (1, 4, 6, 10)
    assert next(iter(GENERATORS)) == PHILOX


def code(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]


def vectors() -> list[dict]:
    return json.loads(code("json"))


def test_the_page_s_vectors_are_made() -> None:
    for case in vectors():
        made = philox_noise(int(case["seed"]), (case["count"],))
        assert [f"{bits:08x}" for bits in made.view(np.uint32)[: len(case["first"])]] == case["first"]
        assert f"{made.view(np.uint32)[-1]:08x}" == case["last"]


def test_the_page_s_python_makes_the_same_bits() -> None:
    page: dict = {}
    exec(code("python"), page)
    for seed in (0, 7, 2**40 + 3):
        assert np.array_equal(np.array(page["noise"](seed, 1001), np.float32), philox_noise(seed, (1001,)))


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js here")
def test_the_page_s_javascript_makes_the_same_bits(tmp_path: Path) -> None:
    script = code("javascript") + "\nfor (const seed of [0n, 7n, 2n ** 40n + 3n]) process.stdout.write(noise(seed, 100001));"
    script = script.replace("process.stdout.write(noise", "out(noise")
    head = "const fs = require('fs'); const out = (a) => fs.writeSync(1, Buffer.from(a.buffer));\n"
    (tmp_path / "noise.js").write_text(head + script)
    made = subprocess.run(["node", tmp_path / "noise.js"], capture_output=True, check=True).stdout
    expected = np.concatenate([philox_noise(seed, (100001,)) for seed in (0, 7, 2**40 + 3)])
    assert np.count_nonzero(np.frombuffer(made, np.float32) != expected) == 0
