"""Their names beside ours: what a key map matched by which rule, what is missing, and what nearly fits."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from snapgen_deploy.checkpoint.keymap.matching import Matching
from snapgen_deploy.checkpoint.keymap.recipe import TensorRecipe
from snapgen_deploy.checkpoint.keymap.roles import likeness
from snapgen_deploy.families.component import Shape

MOST_NEAR = 3  # near misses of one tensor
LEAST_LIKE = 0.25  # likeness of a near miss; names that mean nothing to us are about 0.1 alike
MOST_MISSING = 200  # missing tensors whose near misses are looked for


@dataclass(frozen=True)
class Matched:
    """One of our tensors that something was found for."""

    ours: str
    expected: Shape
    theirs: tuple[str, ...]
    rule: str  # "" for a name that stayed as it is
    shape: Shape | None  # of what was made; None if it cannot be made

    @property
    def fits(self) -> bool:
        """Whether it has our shape."""
        return self.shape == self.expected


@dataclass(frozen=True)
class Missing:
    """One of our tensors that nothing was found for, with foreign tensors that nearly fit, the likeliest first."""

    ours: str
    expected: Shape
    near: tuple[str, ...]


@dataclass(frozen=True)
class SideBySide:
    """All names on both sides."""

    matched: tuple[Matched, ...]
    missing: tuple[Missing, ...]
    unused: Mapping[str, str]  # foreign name -> what it becomes, which we do not have
    dropped: tuple[str, ...]
    problems: tuple[str, ...]  # of the rules


def side_by_side(
    found: Matching, foreign: Mapping[str, Shape], expected: Mapping[str, Shape], made: Mapping[str, Shape | None]
) -> SideBySide:
    """Both sides; `made` has the shape of what each recipe makes."""
    matched = [_matched(name, recipe, expected[name], made[name]) for name, recipe in found.recipes.items() if name in expected]
    unused = {recipe.sources[0]: name for name, recipe in found.recipes.items() if name not in expected}
    free = [*unused, *(m.theirs[0] for m in matched if not m.fits)]
    missing = [name for name in expected if name not in found.recipes]
    rows = [
        Missing(name, expected[name], near_misses(name, expected[name], free, foreign) if i < MOST_MISSING else ())
        for i, name in enumerate(missing)
    ]
    order = {name: i for i, name in enumerate(expected)}
    return SideBySide(tuple(sorted(matched, key=lambda m: order[m.ours])), tuple(rows), unused, found.dropped, found.problems)


def _matched(name: str, recipe: TensorRecipe, expected: Shape, shape: Shape | None) -> Matched:
    return Matched(name, expected, recipe.sources, recipe.rule, shape)


def near_misses(name: str, wanted: Shape, free: Sequence[str], foreign: Mapping[str, Shape]) -> tuple[str, ...]:
    """Foreign tensors of the same size, or a multiple along the first axis (fused ones), whose names mean the same."""
    found = []
    for theirs in free:
        kind = _kind(foreign[theirs], wanted)
        if kind and (like := likeness(name, theirs)) >= LEAST_LIKE:
            found.append((like + kind, theirs))
    found.sort(key=lambda pair: (-pair[0], pair[1]))
    unlike = dict[str, str]()  # of those that differ in numbers only, the likeliest
    for _, theirs in found:
        unlike.setdefault(_plain(theirs), theirs)
    return tuple(unlike.values())[:MOST_NEAR]


def _kind(got: Shape, wanted: Shape) -> float:
    """How well a shape fits: 1 the same, 0.5 as many values, 0.25 a part of it, 0 not at all."""
    if got == wanted:
        return 1.0
    if math.prod(got) == math.prod(wanted):
        return 0.5
    part = len(got) == len(wanted) and len(wanted) > 0 and got[1:] == wanted[1:] and got[0] > wanted[0] > 0
    return 0.25 if part else 0.0


def grouped(rows: Sequence[Matched]) -> list[list[Matched]]:
    """Rows in groups that differ in numbers only, by order of the first."""
    groups: dict[object, list[Matched]] = {}
    for row in rows:
        key = (_plain(row.ours), tuple(map(_plain, row.theirs)), row.rule, row.expected, row.shape)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def grouped_missing(rows: Sequence[Missing]) -> list[list[Missing]]:
    """The same for missing tensors."""
    groups: dict[object, list[Missing]] = {}
    for row in rows:
        groups.setdefault((_plain(row.ours), row.expected, tuple(map(_plain, row.near))), []).append(row)
    return list(groups.values())


def _plain(name: str) -> str:
    return re.sub(r"(?<=\.)[0-9]+(?=\.)", "#", name)
