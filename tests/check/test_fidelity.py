from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest

from snapgen_deploy.check.fidelity import (
    DETECTOR,
    NO_SCORER,
    Measured,
    compare_points,
    fidelity_gates,
    load_scorer,
    points_of,
    scorer_of,
)
from snapgen_deploy.checkpoint import open_checkpoint
from snapgen_deploy.drawing.prompts import CALIBRATION, FIDELITY, Sample, own_samples, read_samples
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.precisions import PRECISIONS
from snapgen_deploy.export.registry import specs

DIFFERENT = [f"prompt {i}" for i in range(100)]
EIGHT = PRECISIONS["int8-dynamic"].limits


def measured(**changes) -> Measured:
    good = {"psnr": 30.0, "mean_psnr": 40.0, "ssim": 0.99, "latent_error": (0.01, 0.02), "score": None}
    return Measured(100, **(good | changes))


def verdicts(found: Measured) -> dict[str, str]:
    return {g.name.removeprefix("fidelity_"): g.verdict for g in fidelity_gates("t", found, EIGHT)}


def test_without_a_scorer_the_score_is_not_run_and_the_images_are():
    assert verdicts(measured()) == {
        "psnr": "passed",
        "mean_psnr": "passed",
        "ssim": "passed",
        "latent_error": "passed",
        "score_change": "not_run",
    }
    assert "image measures only" in fidelity_gates("t", measured(), EIGHT)[-1].detail


@pytest.mark.parametrize(
    ("name", "value"),
    [("psnr", math.nan), ("mean_psnr", math.nan), ("ssim", math.nan), ("latent_error", (0.01, math.nan)), ("ssim", 0.1)],
)
def test_what_is_low_or_not_a_number_fails(name, value):
    found = measured(**{name: value})
    assert verdicts(found)[name] == "failed"
    assert json.dumps(found.as_dict(), allow_nan=False)


def test_a_loss_of_points_beyond_the_interval_fails():
    reference = [[2, 2]] * 60 + [[1, 2]] * 40
    same, one_less = (
        compare_points(DIFFERENT, reference, reference),
        compare_points(DIFFERENT, [[a - (i < 2), b] for i, (a, b) in enumerate(reference)], reference),
    )
    worse = compare_points(DIFFERENT, [[1, 2]] * 100, reference)
    assert same.share == pytest.approx(0.8)
    assert same.difference == (0, 0)
    assert same.interval[0] < 0.8 < same.interval[1]
    assert [verdicts(measured(score=s))["score_change"] for s in (same, one_less, worse)] == ["passed", "passed", "failed"]


def test_points_are_kept_as_they_are_and_anything_else_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "scorers_of_this_test.py").write_text(
        "def share(prompts, pictures):\n    return [(0.31, 1.0) for _ in prompts]\n"
        "def few(prompts, pictures):\n    return [(1, 1)]\n"
        "def broken(prompts, pictures):\n    return [(float('nan'), 1) for _ in prompts]\n"
        "def below(prompts, pictures):\n    return [(1, -1) for _ in prompts]\n"
        "def plain(prompts, pictures):\n    return [0.5 for _ in prompts]\n"
        "def raising(prompts, pictures):\n    raise KeyError('ring')\n"
    )
    monkeypatch.chdir(tmp_path)
    samples, pictures = [Sample("a", 0), Sample("b", 1)], [np.zeros((2, 2, 3), np.uint8)] * 2
    points = points_of("scorers_of_this_test.py:share", samples, pictures)
    assert points == [[0.31, 1.0]] * 2
    lost = compare_points(["a", "b"], [[0.05, 1.0]] * 2, points)
    assert (lost.share, lost.reference) == (0.05, 0.31)
    assert lost.difference[1] < -0.2
    for name in ("few", "broken", "below", "plain", "raising"):
        with pytest.raises(BadInput, match="--scorer"):
            points_of(f"scorers_of_this_test.py:{name}", samples, pictures)


@pytest.mark.parametrize("unit", [1.0, 0.01, 1e-6])
def test_a_share_of_points_is_that_in_any_unit(unit):
    lost = compare_points(DIFFERENT[:8], [[0.0, unit]] * 8, [[unit, unit]] * 8)
    assert (lost.share, lost.reference) == (0, 1)
    assert lost.difference == (-1, -1)
    nothing = compare_points(["a", "b"], [[0, 0], [1, 2]], [[0, 0], [2, 2]])  # of the first nothing was asked
    assert (nothing.share, nothing.reference) == (0.5, 1)


def test_pictures_of_one_prompt_are_one_draw_of_the_bootstrap():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):  # four prompts of differing difficulty, 25 pictures each
        chances = rng.uniform(0.5, 1.0, 4)
        points = [[float(rng.random() < p), 1.0] for p in chances for _ in range(25)]
        score = compare_points([f"{i // 25}" for i in range(100)], points, points)
        assert score.prompts == 4
        covered += score.interval[0] <= 0.75 <= score.interval[1]
    assert covered / 200 > 0.75  # 68 % where every picture is drawn by itself; few prompts bound what any bootstrap covers
    alone = compare_points(["one"] * 4, [[1, 1], [0, 1], [1, 1], [1, 1]], [[1, 1]] * 4)
    assert (alone.share, alone.interval, alone.difference) == (0.75, (0.75, 0.75), (-0.25, -0.25))


@pytest.mark.parametrize(
    ("resolution", "prompt", "message"),
    [
        ((256, 256), "a red ring on a gray background", "128x128"),
        ((128, 128), "a red ring", "does not read these prompts"),
    ],
)
def test_the_detector_says_what_it_does_not_know(resolution, prompt, message):
    scorer, why = scorer_of(open_checkpoint(None), None, [Sample(prompt, 0)], resolution)
    assert scorer is None
    gate = fidelity_gates("t", measured(), EIGHT, why)[-1]
    assert gate.verdict == "not_run"
    assert message in gate.detail


def test_a_scorer_is_tried_before_anything_is_drawn():
    with pytest.raises(BadInput, match="--scorer .*ValueError: got 'a red ring'"):
        scorer_of(open_checkpoint(None), DETECTOR, [Sample("a red ring", 0)], (128, 128))


def test_where_the_reference_has_no_points_none_can_be_lost():
    nothing = compare_points(DIFFERENT, [[0, 1]] * 100, [[1, 1]] + [[0, 1]] * 99)
    gate = fidelity_gates("t", measured(score=nothing), EIGHT)[-1]
    assert (gate.verdict, "the reference itself has 1.0 %" in gate.detail) == ("not_run", True)


def test_scorers_by_name(tmp_path, monkeypatch):
    (tmp_path / "mine_of_this_test.py").write_text("def points(prompts, pictures):\n    return [(1, 1)] * len(prompts)\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_scorer("mine_of_this_test.py:points")(["a"], []) == [(1, 1)]
    assert sys.path == before
    absent = ("mine_of_this_test.py:absent", "absent_module:points", "mine_of_this_test:points", "absent.py:points")
    for wrong in ("mine_of_this_test.py", *absent):
        with pytest.raises(BadInput, match="MODULE:FUNCTION"):
            load_scorer(wrong)


def test_the_working_directory_decides_no_gate(tmp_path, monkeypatch):
    """A package of the detector's name lies there, as in any project with examples of its own."""
    folder = tmp_path / "examples" / "shapes"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").touch()
    (folder / "score.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.chdir(tmp_path)
    for name in [n for n in sys.modules if n.partition(".")[0] == "examples"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])  # a package that came with something else that is installed
    prompt = own_samples(open_checkpoint(None), FIDELITY, (), 1, 0)
    assert scorer_of(open_checkpoint(None), None, prompt, (128, 128)) == (DETECTOR, "")
    monkeypatch.setattr("snapgen_deploy.check.fidelity._source_tree", lambda: tmp_path / "installed")
    assert scorer_of(open_checkpoint(None), None, prompt, (128, 128)) == (None, NO_SCORER)


def test_the_embedded_checkpoint_is_known_by_its_bytes(tmp_path):
    embedded = open_checkpoint(None)
    copy = tmp_path / "renamed.safetensors"
    copy.write_bytes(embedded.path.read_bytes())
    samples = own_samples(embedded, FIDELITY, (), 3, 0)
    for known in (embedded, open_checkpoint(copy)):
        assert scorer_of(known, None, samples, (128, 128)) == (DETECTOR, "")
    changed = bytearray(copy.read_bytes())
    changed[-1] ^= 1
    copy.write_bytes(changed)
    other = open_checkpoint(copy)
    assert scorer_of(other, None, samples, (128, 128)) == (None, NO_SCORER)
    assert {s.prompt for s in own_samples(other, FIDELITY, ["a", "b"], 5, 0)} == {"a", "b"}


def test_fixed_prompts_are_many_and_not_those_of_the_calibration():
    embedded = open_checkpoint(None)
    judged = own_samples(embedded, FIDELITY, (), 100, 0)
    seen = own_samples(embedded, CALIBRATION, (), 16, 1_000_000)
    assert len({s.prompt for s in judged}) >= 95
    assert not {s.prompt for s in judged} & {s.prompt for s in seen}
    assert not {s.seed for s in judged} & {s.seed for s in seen}


def test_prompts_with_seeds(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a red ring\n\na blue square\t7\n")
    assert [(s.prompt, s.seed) for s in read_samples(path, 0)] == [("a red ring", 0), ("a blue square", 7)]
    path.write_text("a red ring\tseven\n")
    with pytest.raises(BadInput, match="line 1: got the seed 'seven'"):
        read_samples(path, 0)
    path.write_text(f"a red ring\t{'9' * 5000}\n")  # more digits than Python reads
    with pytest.raises(BadInput, match="line 1: got the seed '9{40}'"):
        read_samples(path, 0)


def test_every_precision_is_offered_and_has_limits():
    offered = {p for spec in specs().values() for p in spec.precisions}
    assert offered == set(PRECISIONS)
    for spec in specs().values():
        assert set(spec.calibrated) <= set(spec.precisions)


def test_without_pictures_their_likeness_is_not_run():
    found = measured(ssim=None)
    assert verdicts(found)["ssim"] == "not_run"
    assert found.as_dict()["ssim"] is None
