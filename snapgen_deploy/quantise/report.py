"""What a bundle says of its mixed precision: bits as read back from the file, and the recipe that chose them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Artifact
from snapgen_deploy.export.coreml_palettes import stored_palettes, stored_rest
from snapgen_deploy.plan import ExportPlan
from snapgen_deploy.quantise.recipe import CURVE, PICTURE, RECIPE, Recipe, load_recipe

FOLDER = "mixed"  # of the bundle


def add_to_manifest(manifest: dict[str, Any], plan: ExportPlan, students: Mapping[str, Artifact], folder: Path) -> None:
    """Give every target of mixed precision its `mixed`; `students` by the targets' keys, `folder` holds the recipe."""
    recipe = load_recipe(folder)
    if recipe is None:
        raise BadInput(f"the recipe in {folder} was removed or changed while it was used; export again")
    for target in plan.targets:
        if target.precision == "mixed":
            manifest["targets"][target.key]["mixed"] = about_files(students[target.key], recipe)


def about_files(student: Artifact, recipe: Recipe) -> dict[str, Any]:
    """For the manifest: what is in the student's file, and how it was chosen.

    `average_bits` is over all weights that have palettes; `average_bits_with_tables` adds the palettes themselves, and
    `average_bits_of_all` every other constant of the file (biases, norms, modulation, positions), which stay fp16.
    """
    stored, (rest, rest_bytes) = stored_palettes(student.path), stored_rest(student.path)
    weights = sum(s.weights for s in stored.values())
    indices = sum(s.bits * s.weights for s in stored.values())
    tables = sum(8 * s.table_bytes for s in stored.values())
    return {
        "layers": {name: s.bits for name, s in stored.items()},
        "weights": weights,
        "average_bits": _digits(indices / weights),
        "average_bits_with_tables": _digits((indices + tables) / weights),
        "average_bits_of_all": _digits((indices + tables + 8 * rest_bytes) / (weights + rest)),
        "recipe": dict(recipe.about),
    }


def copy_into(root: Path, recipe: Path) -> None:
    """The recipe and its loss curve, for whoever wants to know how the bits were chosen."""
    (root / FOLDER).mkdir(exist_ok=True)
    for name in (RECIPE, CURVE, PICTURE):
        shutil.copyfile(recipe / name, root / FOLDER / name)


def _digits(value: float) -> float:
    return round(value, 6)
