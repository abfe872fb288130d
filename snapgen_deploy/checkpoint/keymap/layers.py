"""The structure in tensor names: lists of blocks, and modules with their weight and bias."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from snapgen_deploy.families.component import Shape

LEAST_LEAVES = 8  # tensors of a block: less is a part of one, such as the two layers of a feed-forward
_INDEX = re.compile(r"(?<![^.])[0-9]+(?![^.@])")
_PART = re.compile(r"(.*)\.(weight|bias)(@\w+)?")
_SLOTS = "ijklmn"


@dataclass(frozen=True)
class BlockList:
    """`name.0 ... name.(n-1)`, each with tensors of its own."""

    name: str
    sizes: tuple[int, ...]  # values of each block


@dataclass
class Module:
    """Tensors that belong together, in all blocks or under all numbers that have them."""

    name: str  # within its block; with {i} for numbers outside blocks
    place: int  # among the others, in order
    shapes: dict[object, dict[str, Shape]] = field(default_factory=dict)  # block or numbers -> weight, bias or "" -> shape

    @property
    def parts(self) -> tuple[str, ...]:
        """Of any block, in order."""
        return tuple(dict.fromkeys(part for shapes in self.shapes.values() for part in shapes))

    def add(self, at: object, part: str, shape: Shape) -> None:
        """Note one tensor."""
        self.shapes.setdefault(at, {})[part] = shape


def natural(name: str) -> list[tuple[int, int | str]]:
    """A key that puts `block.10` after `block.9`."""
    return [(0, int(t)) if t.isdigit() else (1, t) for t in re.split(r"([0-9]+)", name) if t]


def block_lists(shapes: Mapping[str, Shape]) -> list[BlockList]:
    """The lists of blocks, the innermost where they are nested, in order of their names' first appearance."""
    leaves: dict[str, dict[int, list[int]]] = {}
    for name, shape in shapes.items():
        for match in _INDEX.finditer(name):
            if match.start() and len(match[0]) < 6:
                inside = leaves.setdefault(name[: match.start() - 1], {})
                inside.setdefault(int(match[0]), []).append(math.prod(shape))
    good = {
        name: BlockList(name, tuple(sum(blocks[i]) for i in sorted(blocks)))
        for name, blocks in leaves.items()
        if sorted(blocks) == list(range(len(blocks))) and min(map(len, blocks.values())) >= LEAST_LEAVES
    }
    outer = {
        re.sub(r"\.[0-9]+(\..*)?$", "", name[: m.start() - 1]) for name in good for m in _INDEX.finditer(name) if m.start()
    }
    outer |= {name[: m.start() - 1] for name in good for m in _INDEX.finditer(name) if m.start()}
    return [blocks for name, blocks in good.items() if name not in outer]


def split_block(name: str, lists: Iterable[str]) -> tuple[str, int, str] | None:
    """List, number and the rest of a name inside a block; None outside."""
    for known in lists:
        if name.startswith(f"{known}."):
            number, _, rest = name[len(known) + 1 :].partition(".")
            if number.isdigit() and rest:
                return known, int(number), rest
    return None


def split_part(name: str) -> tuple[str, str]:
    """Module and `weight` or `bias`; a width stays with the module.

    >>> split_part("q_norm.weight@tiny"), split_part("table")
    (('q_norm@tiny', 'weight'), ('table', ''))
    """
    match = _PART.fullmatch(name)
    return (match[1] + (match[3] or ""), match[2]) if match else (name, "")


def joined(module: str, part: str) -> str:
    """The name of a part: the inverse of `split_part`, also for patterns."""
    plain, at, width = module.partition("@")
    return (f"{plain}.{part}" if part else plain) + at + width


def numbers_folded(name: str) -> tuple[str, tuple[int, ...]]:
    """A name outside blocks with {i}, {j} for its numbers, and those.

    >>> numbers_folded("skips.3.x")
    ('skips.{i}.x', (3,))
    """
    found: list[int] = []

    def fold(match: re.Match[str]) -> str:
        if len(found) == len(_SLOTS):
            return match[0]
        found.append(int(match[0]))
        return f"{{{_SLOTS[len(found) - 1]}}}"

    return _INDEX.sub(fold, name), tuple(found)
