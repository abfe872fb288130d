"""Drafts a key map from shapes, order and usual names, for a person to check."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from snapgen_deploy.checkpoint.keymap.layers import (
    BlockList,
    Module,
    block_lists,
    joined,
    natural,
    numbers_folded,
    split_block,
    split_part,
)
from snapgen_deploy.checkpoint.keymap.roles import likeness, roles
from snapgen_deploy.families.component import Shape

LEAST_ALIKE = 0.7  # share of a block's values that both sides must have
CLEAR = 0.1  # of likeness, between a module and the next that has its shape
MOST_FUSED, MOST_ALSO = 4, 3  # modules in one foreign one; alternatives that a comment names
MOST_MODULES = 2000  # of one side outside blocks or inside one; more are not compared


@dataclass(frozen=True)
class AlignedBlocks:
    """Consecutive blocks of a foreign list that are one of ours."""

    theirs: str
    first: int
    ours: str
    count: int


@dataclass(frozen=True)
class Entry:
    """One rule of the draft."""

    theirs: str
    ours: str
    options: str = ""
    comment: str = ""

    @property
    def line(self) -> str:
        """As TOML."""
        value = f"{{ to = {_quoted(self.ours)}, {self.options} }}" if self.options else _quoted(self.ours)
        return f"{_quoted(self.theirs)} = {value}"


@dataclass(frozen=True)
class Draft:
    """A drafted key map."""

    blocks: tuple[AlignedBlocks, ...]
    entries: tuple[Entry, ...]

    @property
    def text(self) -> str:
        """The file."""
        lines = ["# Drafted from shapes, order and usual names. Check it with: inspect CHECKPOINT --key-map THIS --names"]
        for entry in self.entries:
            lines += ["", f"# {entry.comment}"] if entry.comment else []
            lines.append(entry.line)
        if self.blocks:
            lines += ["", "[words.block]"]
        for b in self.blocks:
            number = f"{{i:{b.first}..{b.first + b.count - 1}}}"
            shifted = f"{{i-{b.first}}}" if b.first else "{i}"
            lines.append(f"{_quoted(f'{b.theirs}.{number}')} = {_quoted(f'{b.ours}.{shifted}')}")
        return "\n".join(lines) + "\n"

    @property
    def rules(self) -> int:
        """Rules and words."""
        return len(self.entries) + len(self.blocks)


def suggest(foreign: Mapping[str, Shape], expected: Mapping[str, Shape]) -> Draft:
    """A key map from the foreign tensors to ours, as far as shapes, order and names tell."""
    theirs = {name: foreign[name] for name in sorted(foreign, key=natural) if name not in expected}
    ours = {name: shape for name, shape in _without_only_width(expected).items() if name not in foreign}
    blocks = _align(block_lists(theirs), block_lists(ours))
    entries: list[Entry] = []
    inside = (_modules_inside(theirs, blocks, foreign=True), _modules_inside(ours, blocks, foreign=False))
    for front, (a, b) in (("{block}.", inside), ("", (_modules_outside(theirs, blocks), _modules_outside(ours, blocks)))):
        entries += _merged([*_pairs(a, b, front)])
    return Draft(tuple(blocks), tuple(entries))


def _without_only_width(expected: Mapping[str, Shape]) -> dict[str, Shape]:
    """Our tensors; without its width where there is one for one width alone."""
    count: dict[str, int] = {}
    for name in expected:
        plain = name.partition("@")[0]
        count[plain] = count.get(plain, 0) + 1
    return {n if count[plain := n.partition("@")[0]] > 1 else plain: shape for n, shape in expected.items()}


def _align(theirs: list[BlockList], ours: list[BlockList]) -> list[AlignedBlocks]:
    """Foreign lists and runs of ours with as many blocks and about as many values in each, the likeliest first."""
    candidates = []
    for a in theirs:
        for start in range(len(ours)):
            for stop in range(start + 1, len(ours) + 1):
                run = ours[start:stop]
                sizes = [size for blocks in run for size in blocks.sizes]
                if len(sizes) != len(a.sizes) or len({b.name.partition(".")[0] for b in run}) > 1:
                    continue
                alike = sum(min(x, y) / max(x, y, 1) for x, y in zip(sizes, a.sizes, strict=True)) / len(sizes)
                if alike >= LEAST_ALIKE:
                    candidates.append((alike + likeness(a.name, run[0].name), a, run))
    candidates.sort(key=lambda c: -c[0])
    used: set[str] = set()
    found = []
    for _, a, run in candidates:
        names = {f"theirs {a.name}", *(b.name for b in run)}
        if names & used:
            continue
        used |= names
        first = 0
        for b in run:
            found.append(AlignedBlocks(a.name, first, b.name, len(b.sizes)))
            first += len(b.sizes)
    order = {b.name: i for i, b in enumerate(ours)}
    return sorted(found, key=lambda b: order[b.ours])


def _modules_inside(shapes: Mapping[str, Shape], blocks: Sequence[AlignedBlocks], *, foreign: bool) -> list[Module]:
    """Modules of all aligned blocks, which are numbered as ours are."""
    modules: dict[str, Module] = {}
    lists = dict.fromkeys(b.theirs if foreign else b.ours for b in blocks)
    for name, shape in shapes.items():
        found = split_block(name, lists)
        if found is None:
            continue
        known, number, rest = found
        at = (known, number) if not foreign else _as_ours(blocks, known, number)
        module, part = split_part(rest)
        modules.setdefault(module, Module(module, len(modules))).add(at, part, shape)
    return list(modules.values())


def _as_ours(blocks: Sequence[AlignedBlocks], known: str, number: int) -> tuple[str, int]:
    b = next(b for b in blocks if b.theirs == known and b.first <= number < b.first + b.count)
    return b.ours, number - b.first


def _modules_outside(shapes: Mapping[str, Shape], blocks: Sequence[AlignedBlocks]) -> list[Module]:
    """Modules elsewhere; numbers in their names are folded."""
    lists = {b.theirs for b in blocks} | {b.ours for b in blocks}
    modules: dict[str, Module] = {}
    for name, shape in shapes.items():
        if split_block(name, lists) is None:
            module, part = split_part(name)
            folded, numbers = numbers_folded(module)
            modules.setdefault(folded, Module(folded, len(modules))).add(numbers, part, shape)
    return list(modules.values())


def _pairs(theirs: list[Module], ours: list[Module], front: str) -> Iterator[Entry]:
    """Fused modules first, since one of them may have the shape of another of ours; then one for one."""
    theirs, ours = theirs[:MOST_MODULES], ours[:MOST_MODULES]
    for a in [m for m in theirs if "fused" in roles(m.name)]:
        group = _fused(a, ours)
        if group:
            theirs.remove(a)
            for b in group:
                ours.remove(b)
            yield _fused_entry(a, group, front)
    for a, b, how in _assigned(theirs, ours):
        yield Entry(
            front + joined(a.name, _part(a)), front + joined(b.name, _part(b, ours=True)), how, _comment(a, b, theirs, how)
        )


def _part(module: Module, *, ours: bool = False) -> str:
    """The last part of a pattern for all tensors of a module."""
    parts = module.parts
    return parts[0] if len(parts) == 1 else ("{p}" if ours else "{p:*}")


def _assigned(theirs: Sequence[Module], ours: Sequence[Module]) -> list[tuple[Module, Module, str]]:
    """The pairing of modules of one shape whose names are the most alike in all, near to the order of both sides."""
    from scipy.optimize import linear_sum_assignment

    if not theirs or not ours:
        return []
    ways: dict[tuple[int, int], str] = {}
    score = np.zeros((len(ours), len(theirs)))
    for (i, b), (j, a) in itertools.product(enumerate(ours), enumerate(theirs)):
        how = _how(a, b)
        if how is not None:
            ways[i, j] = how
            apart = abs(i / len(ours) - j / len(theirs))
            score[i, j] = 1 + (0 if how else 0.5) + 3 * likeness(a.name, b.name) - 0.2 * apart
    rows, columns = linear_sum_assignment(score, maximize=True)
    return [(theirs[j], ours[i], ways[i, j]) for i, j in zip(rows, columns, strict=True) if (i, j) in ways]


def _how(a: Module, b: Module) -> str | None:
    """The option with which a foreign module becomes one of ours ("" for none), or None if it cannot."""
    if set(a.shapes) != set(b.shapes):
        return None
    ways = set()
    for at, shapes in b.shapes.items():
        got = a.shapes[at]
        if set(got) != set(shapes):
            return None
        ways |= {_way(got[part], shape) for part, shape in shapes.items()}
    if None in ways:
        return None
    ways.discard("")
    if not ways:
        return ""
    way = ways.pop()
    return None if ways else way


def _way(got: Shape, wanted: Shape) -> str | None:
    if got == wanted:
        return ""
    if [n for n in got if n > 1] == [n for n in wanted if n > 1]:
        return 'reshape = "ours"'
    return "transpose = [1, 0]" if len(got) == 2 and got[::-1] == wanted else None


def _comment(a: Module, b: Module, theirs: Sequence[Module], how: str) -> str:
    """What else has the module's shape, if names do not tell it clearly."""
    own = likeness(a.name, b.name)
    others = sorted(((likeness(c.name, b.name), c.name) for c in theirs if c is not a and _how(c, b) == how), reverse=True)
    if not others:
        return ""
    names = ", ".join(name for _, name in others[:MOST_ALSO]) + (", ..." if len(others) > MOST_ALSO else "")
    clear = own - others[0][0] >= CLEAR and roles(a.name) & roles(b.name)
    return "" if clear else f"check: {names} {'has' if len(others) == 1 else 'have'} this shape, too"


def _fused(a: Module, ours: Sequence[Module]) -> list[Module]:
    """Consecutive modules of one parent whose rows together are the foreign module's; [] if there are none."""
    best: tuple[float, list[Module]] = (0.0, [])
    for count in range(2, MOST_FUSED + 1):
        for start in range(len(ours) - count + 1):
            group = list(ours[start : start + count])
            parent = _parent(group[0].name)
            if all(_parent(b.name) == parent for b in group) and _adds_up(a, group):
                like = 1 + likeness(a.name, group[0].name)
                best = max(best, (like, group), key=lambda pair: pair[0])
    return best[1]


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _adds_up(a: Module, group: Sequence[Module]) -> bool:
    if any(set(b.shapes) != set(a.shapes) for b in group):
        return False
    for at, got in a.shapes.items():
        for part, shape in got.items():
            pieces = [b.shapes[at].get(part) for b in group]
            if not shape or any(p is None or len(p) != len(shape) or p[1:] != shape[1:] for p in pieces):
                return False
            if sum(p[0] for p in pieces if p) != shape[0]:
                return False
    return True


def _fused_entry(a: Module, group: Sequence[Module], front: str) -> Entry:
    parent = _parent(group[0].name)
    leaves = [b.name.rpartition(".")[2] for b in group]
    ours = f"{parent}.{{x:{'|'.join(leaves)}}}" if parent else f"{{x:{'|'.join(leaves)}}}"
    said = f"check: {', '.join(leaves)} in this order, not alternating by heads (heads = N)"
    return Entry(front + joined(a.name, _part(a)), front + joined(ours, _part(a, ours=True)), comment=said)


_TOKEN = re.compile(r"\{[^{}]*\}|[A-Za-z]+|[0-9]+")


def _merged(entries: list[Entry]) -> list[Entry]:
    """Rules that differ in one word, the same on both sides, become one with choices."""
    while True:
        groups: dict[tuple[str, str, str, str], dict[str, int]] = {}
        for number, entry in enumerate(entries):
            for word, a, b in _slotted(entry):
                groups.setdefault((a, b, entry.options, entry.comment), {}).setdefault(word, number)
        best = max(groups.items(), key=lambda item: len(set(item[1].values())), default=None)
        if best is None or len(set(best[1].values())) < 2:
            return entries
        (a, b, options, comment), words = best
        choices = "|".join(words)
        first = min(words.values())
        whole = Entry(a.replace("{x}", f"{{x:{choices}}}"), b, options, comment)
        entries = [whole if i == first else e for i, e in enumerate(entries) if i == first or i not in words.values()]


def _slotted(entry: Entry) -> Iterator[tuple[str, str, str]]:
    """Each word that both sides have, with both sides as they are without it."""
    if "{x" in entry.theirs + entry.ours:
        return
    for a in _TOKEN.finditer(entry.theirs):
        for b in _TOKEN.finditer(entry.ours):
            if a[0] == b[0] and not a[0].startswith("{"):
                left = entry.theirs[: a.start()] + "{x}" + entry.theirs[a.end() :]
                right = entry.ours[: b.start()] + "{x}" + entry.ours[b.end() :]
                if "}{" not in left:
                    yield a[0], left, right


def _quoted(text: str) -> str:
    """A TOML string; literal where the text allows it."""
    if "'" not in text and text.isprintable() and ("\\" in text or '"' in text):
        return f"'{text}'"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in escaped) + '"'
