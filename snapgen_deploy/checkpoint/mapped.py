"""A source under our names: what a key map makes of another source. Nothing is read before `read`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from snapgen_deploy.checkpoint.header import TensorInfo
from snapgen_deploy.checkpoint.keymap import KeyMap, TensorRecipe
from snapgen_deploy.checkpoint.sources import CODES, TYPES, Source
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.component import Shape
from snapgen_deploy.system.documents import refuse, shown


@dataclass
class MappedSource:
    """Tensors of ours, each made of foreign ones when it is read: one more tensor is held meanwhile, at most."""

    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    metadata: Mapping[str, str]
    recipes: Mapping[str, TensorRecipe]
    _source: Source = field(repr=False)

    @classmethod
    def of(cls, source: Source, keys: KeyMap, expected: Mapping[str, Shape]) -> MappedSource:
        """The source under the names that `keys` gives; `expected` has our shapes by name.

        Raises:
            BadInput: if a rule does not apply, or not to tensors of these shapes; one message for all problems.
        """
        recipes = keys.recipes(source.tensors, expected)
        tensors, problems = {}, []
        for name, recipe in recipes.items():
            try:
                tensors[name] = made_of(recipe, source)
            except ValueError as error:
                problems.append(f"{shown(recipe.rule)}: {shown(name)}: {error}")
        refuse(f"key map {keys.path}", problems)
        return cls(source.files, tensors, source.metadata, recipes, source)

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The leading part of size `shape`; a view of the mapped file where no number changes."""
        recipe = self.recipes[name]
        if recipe.plain:
            return self._source.read(recipe.sources[0], shape)
        parts = [self._source.read(theirs, self._source.tensors[theirs].shape) for theirs in recipe.sources]
        try:
            return recipe.make(parts)[tuple(slice(0, n) for n in shape)]
        except ValueError as error:
            raise BadInput(f"{self.files[0]}: {shown(name)}: {error}") from None


def made_of(recipe: TensorRecipe, source: Source) -> TensorInfo:
    """Shape and type of what a recipe makes, without storage.

    Raises:
        ValueError: if it cannot be made of tensors of these shapes and types.
    """
    if recipe.plain:
        return source.tensors[recipe.sources[0]]
    parts = []
    for theirs in recipe.sources:
        info = source.tensors[theirs]
        if info.dtype not in TYPES:
            raise ValueError(f"{shown(theirs)} has dtype {info.dtype}, expected one of {', '.join(TYPES)}")
        parts.append(torch.empty(info.shape, dtype=TYPES[info.dtype], device="meta"))
    made = recipe.make(parts)
    return TensorInfo(tuple(made.shape), CODES[made.dtype], made.numel() * made.element_size())
