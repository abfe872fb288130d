"""The recipe: stages kept by their keys, damage noticed, settings refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.checkpoint.networks import load_student
from snapgen_deploy.errors import BadInput
from snapgen_deploy.plan.mixed import MixedSettings, mixed_settings
from snapgen_deploy.quantise.executors import Here
from snapgen_deploy.quantise.layers import layers_of
from snapgen_deploy.quantise.network import tunable
from snapgen_deploy.quantise.recipe import (
    CURVE,
    CURVE_PICTURE,
    RECIPE,
    RECIPE_SEAL,
    TUNED_WEIGHTS,
    keep_within,
    load_recipe,
    make_recipe,
)
from snapgen_deploy.quantise.sensitivity import Sensitivity
from tests.quantise.quantise_cases import LATENT, PROMPTS, tiny_checkpoint

SETTINGS = MixedSettings(4.3, 6, 16, PROMPTS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def root(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one finished recipe; the order of sums, and so the last digits, follows the number of threads."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("recipes")
    make_recipe(checkpoint, "full", LATENT, SETTINGS, Here(), root)
    return root


def make(checkpoint: Checkpoint, root: Path, settings: MixedSettings = SETTINGS) -> tuple[Path, list[str]]:
    """The recipe's folder, and the kinds of work that made progress for it: what was there already does not."""
    heard: list[str] = []
    before: dict[str, int] = {}

    def report(what: str, done: int, total: int) -> None:
        kind = what.partition(" (")[0]
        if done > before.setdefault(kind, done) and kind not in heard:
            heard.append(kind)

    return make_recipe(checkpoint, "full", LATENT, settings, Here(), root, report=report), heard


def test_what_it_holds(checkpoint: Checkpoint, root: Path) -> None:
    folder, heard = make(checkpoint, root)
    assert heard == []  # taken as it is
    recipe = load_recipe(folder)
    assert recipe is not None
    student = load_student(checkpoint, "full")
    layers = layers_of(student)
    weights = {n: m.weight.numel() for n, m in layers.items()}
    assert set(recipe.bits) == set(layers)
    assert set(recipe.bits.values()) == {4, 8}
    average = sum(weights[n] * b for n, b in recipe.bits.items()) / sum(weights.values())
    assert recipe.about["average_bits"] == pytest.approx(average)
    assert 4.2 < average <= 4.3
    assert recipe.about["calibration"]["prompts"] == 4
    assert all(s["mse"]["8"] <= s["mse"]["4"] for s in recipe.about["sensitivities"].values())
    before = {n: p.clone() for n, p in tunable(student).items()}
    recipe.apply(student)
    assert all(len(m.weight.unique()) <= 2 ** recipe.bits[n] for n, m in layers.items())
    if recipe.about["tuning_helped"]:
        assert any(not torch.equal(before[n], p) for n, p in tunable(student).items())
    curve = json.loads((folder / CURVE).read_text())
    assert len(curve["losses"]) == 6
    assert (folder / CURVE_PICTURE).read_bytes().startswith(b"\x89PNG")


def test_what_recipes_share_is_made_once(checkpoint: Checkpoint, root: Path) -> None:
    other, heard = make(checkpoint, root, MixedSettings(5.0, 3, 16, PROMPTS))
    assert heard == ["tuning"]  # the layers at 4 and 8 bits were measured before
    recipe = load_recipe(other)
    assert recipe is not None
    assert 4.8 < recipe.about["average_bits"] <= 5.0
    again, heard = make(checkpoint, root, MixedSettings(3.5, 3, 16, PROMPTS))
    assert heard == ["measuring layers", "tuning"]  # at other levels
    third = load_recipe(again)
    assert third is not None
    assert set(third.bits.values()) == {3, 4}


def test_the_same_bytes_elsewhere(checkpoint: Checkpoint, root: Path, tmp_path: Path) -> None:
    folder, _ = make(checkpoint, root)
    other, heard = make(checkpoint, tmp_path)
    assert heard == ["recording trajectories", "measuring layers", "tuning"]
    assert folder.name == other.name
    for name in (RECIPE, TUNED_WEIGHTS, CURVE, CURVE_PICTURE):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def test_a_cut_line_and_damage_are_noticed(checkpoint: Checkpoint, root: Path, tmp_path: Path) -> None:
    folder, _ = make(checkpoint, tmp_path)
    lines = next(tmp_path.glob("sensitivity-*.jsonl"))
    whole = lines.read_text()
    lines.write_text(whole[: len(whole) // 2])  # as a kill leaves it
    (folder / TUNED_WEIGHTS).write_bytes((folder / TUNED_WEIGHTS).read_bytes()[:-4])
    assert load_recipe(folder) is None
    again, heard = make(checkpoint, tmp_path)
    assert heard == ["measuring layers", "tuning"]
    assert lines.read_text() == whole
    assert load_recipe(again) is not None


def test_any_damage_of_a_recipe_is_noticed(checkpoint: Checkpoint, root: Path, tmp_path: Path) -> None:
    folder, _ = make(checkpoint, root)
    text = (folder / RECIPE).read_text()
    layer = next(iter(json.loads(text)["layers"]))
    damages = {
        RECIPE: text.replace(layer, f"{layer}x").encode(),  # sound JSON of the right kind
        TUNED_WEIGHTS: (folder / TUNED_WEIGHTS).read_bytes()[:-1] + b"\0",
        CURVE: b"{}",
        CURVE_PICTURE: None,
        RECIPE_SEAL: b"\xff",
    }
    for number, (name, data) in enumerate(damages.items()):
        copy = shutil.copytree(folder, tmp_path / str(number))
        assert load_recipe(copy) is not None
        (copy / name).unlink()
        if data is not None:
            (copy / name).write_bytes(data)
        assert load_recipe(copy) is None, name


@pytest.mark.parametrize(
    ("changed", "fits"),
    [
        ({}, True),
        ({"weights": 7}, False),
        ({"errors": {4: 0.1}}, False),
        ({"palettes": {4: (0.0,) * 17, 8: (0.0,)}}, False),
        ({"palettes": {4: (), 8: (0.0,)}}, False),
    ],
)
def test_a_damaged_sensitivity_is_that_of_no_layer(changed: dict[str, Any], fits: bool) -> None:
    given = {"name": "a", "weights": 8, "power": 1.0, "errors": {4: 0.1, 8: 0.0}, "palettes": {4: (0.0,), 8: (0.0, 1.0)}}
    assert Sensitivity(**(given | changed)).fits(8, (4, 8)) == fits  # type: ignore[arg-type]


def test_the_oldest_stages_go_first_and_the_new_recipe_stays(tmp_path: Path) -> None:
    import os

    for age, name in enumerate(["recipe-new", "trajectories-a", "recipe-old"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(bytes(1000))
        os.utime(tmp_path / name / "x", (1e9 - age, 1e9 - age))
    keep_within(tmp_path, 1500, tmp_path / "recipe-new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recipe-new", "trajectories-a"]
    keep_within(tmp_path, 0, tmp_path / "recipe-new")
    assert [p.name for p in tmp_path.iterdir()] == ["recipe-new"]


def settings(**changed: object) -> MixedSettings:
    prompts = tuple(f"a ring {i}" for i in range(20))
    given = {"bits": 4.3, "iterations": 10, "pictures": 32, "prompts": prompts, "reads_prompts": True, "source": "p.txt"}
    return mixed_settings(**(given | changed))  # type: ignore[arg-type]


def test_sound_settings() -> None:
    assert settings(pictures=16).prompts == tuple(f"a ring {i}" for i in range(16))
    assert settings(reads_prompts=False).prompts == ()
    assert settings().as_key() != settings(bits=4.31).as_key()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"bits": 2.0}, "--bits: got 2, expected 3 to 8"),
        ({"bits": float("nan")}, "--bits: got nan"),
        ({"iterations": -1}, "--tune-iterations: got -1"),
        ({"pictures": 3}, "--calibration-pictures: got 3, expected 16 to 100000"),
        ({"prompts": ("a", "b", "a") * 9}, "needs 16 or more different calibration prompts, p.txt has 2; .*--calibration FILE"),
    ],
)
def test_settings_that_cannot_be_used(changed: dict[str, object], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        settings(**changed)


@pytest.mark.parametrize("during", ["recording trajectories", "measuring layers"])
def test_a_checkpoint_that_changes_meanwhile_leaves_nothing_under_its_hash(during: str, tmp_path: Path) -> None:
    own, root = tiny_checkpoint(tmp_path), tmp_path / "recipes"
    data = own.files[0].read_bytes()

    def report(what: str, done: int, total: int) -> None:
        if what == during and done == total:
            own.files[0].write_bytes(data)  # a trainer saves anew

    with pytest.raises(BadInput, match="was changed while it was exported"):
        make_recipe(own, "full", LATENT, SETTINGS, Here(), root, report=report)
    assert list(root.iterdir()) == []
