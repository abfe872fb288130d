"""A bundle's record of its mixed precision: bits as read back from the file, and the recipe that chose them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Artifact, HoldsPalettes
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.plan.plan import ExportPlan
from snapgen_deploy.quantise.recipe import CURVE, CURVE_PICTURE, RECIPE, Recipe, load_recipe

_FOLDER = "mixed"  # of the bundle


def add_to_manifest(manifest: dict[str, Any], plan: ExportPlan, students: Mapping[str, Artifact], folder: Path) -> None:
    """Add `mixed` to every target of mixed precision; `students` by the targets' keys, `folder` is the recipe's.

    Raises:
        BadInput: if the recipe was removed or changed meanwhile.
    """
    recipe = load_recipe(folder)
    if recipe is None:
        raise BadInput(f"the recipe in {folder} was removed or changed while it was used; export again")
    for target in plan.targets:
        if target.precision == "mixed":
            manifest["targets"][target.key]["mixed"] = about_files(students[target.key], recipe)


def about_files(student: Artifact, recipe: Recipe) -> dict[str, Any]:
    """For the manifest: what is in the student's file, and how it was chosen.

    `average_bits` is over all weights that have palettes; `average_bits_with_tables` adds the palettes themselves, and
    `average_bits_of_all` every other constant of the file (biases, norms, modulation, positions), which stay floats.
    """
    target, _ = target_of(student.target)
    assert isinstance(target, HoldsPalettes)  # the plan takes no other for mixed precision
    found = target.weights(student.path, student.entry)
    stored = {name: w for name, w in found.items() if w.index_bits}
    weights = sum(w.values for w in stored.values())
    return {
        "layers": {name: w.index_bits for name, w in stored.items()},
        "weights": weights,
        "average_bits": _digits(sum(w.index_bits * w.values for w in stored.values()) / weights),
        "average_bits_with_tables": _digits(sum(w.bits for w in stored.values()) / weights),
        "average_bits_of_all": _digits(sum(w.bits for w in found.values()) / sum(w.values for w in found.values())),
        "recipe": dict(recipe.about),
    }


def copy_into(root: Path, recipe: Path) -> None:
    """Copy the recipe and its loss curve into the bundle at `root`."""
    (root / _FOLDER).mkdir(exist_ok=True)
    for name in (RECIPE, CURVE, CURVE_PICTURE):
        shutil.copyfile(recipe / name, root / _FOLDER / name)


def _digits(value: float) -> float:
    return round(value, 6)
