"""The prompt grammar: what a prompt requires, its text, its parser, and scenes that fulfil it.

prompt  = objects "on a" BACKGROUND "background"
objects = object [place]
        | object RELATION object
        | object place "and" object place
        | object place "," object place "and" object place
        | object RELATION object "and" object place
object  = "a" [SIZE] COLOUR SHAPE           place = "at the" PLACE
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from examples.shapes.scenes import BACKGROUNDS, COLOURS, PLACES, RASTER, RELATIONS, SHAPES, SIDE, SIZES, Scene, Thing

HELD_OUT = 16  # one prompt in this many is never used for training
JITTER = (-RASTER, 0, RASTER)  # pixels around a named place
ALONG = (48, 56, 64, 72)  # pixels between two related objects, and across
GAP = 4.0  # least distance between two objects


@dataclass(frozen=True)
class ObjectSpec:
    """What a prompt requires of one object; None for what it leaves open."""

    colour: str
    shape: str
    size: str | None = None
    place: str | None = None

    def text(self) -> str:
        """The object's words in a prompt."""
        words = " ".join(w for w in (self.size, self.colour, self.shape) if w)
        article = "an" if words[0] in "aeiou" else "a"
        return f"{article} {words}" + (f" at the {self.place}" if self.place else "")


@dataclass(frozen=True)
class PromptSpec:
    """What a prompt requires; `relation` holds between the first and the second object."""

    background: str
    objects: tuple[ObjectSpec, ...]
    relation: str | None = None

    def text(self) -> str:
        """The prompt."""
        parts = [o.text() for o in self.objects]
        if self.relation:
            parts = [f"{parts[0]} {self.relation} {parts[1]}", *parts[2:]]
        joined = " and ".join(filter(None, [" , ".join(parts[:-1]), parts[-1]]))
        return f"{joined} on a {self.background} background"


_OBJECT = rf"an? (?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_PLACE = rf"at the ({'|'.join(sorted(PLACES, key=len, reverse=True))})"
_ITEM = re.compile(rf"{_OBJECT}(?: {_PLACE})?")
_RELATION = re.compile(rf" ({'|'.join(RELATIONS)}) ")
_TAIL = re.compile(rf" on an? ({'|'.join(BACKGROUNDS)}) background$")


def parse(prompt: str) -> PromptSpec:
    """Parse a prompt.

    >>> parse("a red ring left of a blue square on a gray background").relation
    'left of'

    Raises:
        ValueError: if it does not follow the grammar.
    """
    text = " ".join(prompt.lower().replace(",", " , ").split())
    tail = _TAIL.search(text)
    if not tail:
        raise ValueError(f"got {prompt!r}, expected it to end in 'on a {{{'|'.join(BACKGROUNDS)}}} background'")
    body = text[: tail.start()]
    pieces = [_RELATION.split(p) for p in re.split(r" and | , ", body)]
    flat = [p for piece in pieces for p in piece[::2]]
    items = [_ITEM.fullmatch(p) for p in flat]
    relations = [r for piece in pieces for r in piece[1::2]]
    if not all(items) or len(items) > 3 or len(relations) > 1 or (relations and len(pieces[0]) != 3):
        raise ValueError(f"got {prompt!r}, expected one to three objects such as 'a small red ring at the top left'")
    objects = tuple(ObjectSpec(m[2], m[3], m[1], m[4]) for m in items if m)
    return PromptSpec(tail[1], objects, relations[0] if relations else None)


def is_held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the test split (by a hash of its text)."""
    return hashlib.sha256(prompt.encode()).digest()[0] % HELD_OUT == 0


def sample_spec(rng: np.random.Generator) -> PromptSpec:
    """A random prompt of either split. There may be no scene that fulfils it."""
    form = rng.choice(5, p=(0.2, 0.25, 0.2, 0.2, 0.15))
    count = (1, 2, 2, 3, 3)[form]
    places = [list(PLACES)[i] for i in rng.permutation(9)[:count]]
    placed = ((rng.random() < 0.8,), (False, False), (True, True), (True,) * 3, (False, False, True))[form]
    objects: list[ObjectSpec] = []
    while len(objects) < count:
        size = (None, *SIZES)[rng.choice(3, p=(0.4, 0.3, 0.3))]
        place = places[len(objects)] if placed[len(objects)] else None
        candidate = ObjectSpec(_pick(rng, COLOURS), _pick(rng, SHAPES), size, place)
        if all((o.colour, o.shape) != (candidate.colour, candidate.shape) for o in objects):
            objects.append(candidate)
    relation = _pick(rng, RELATIONS) if form in (1, 4) else None
    return PromptSpec(_pick(rng, BACKGROUNDS), tuple(objects), relation)


def realise(spec: PromptSpec, rng: np.random.Generator, attempts: int = 60) -> Scene | None:
    """A random scene that fulfils the requirements, or None if none was found in `attempts` tries."""
    for _ in range(attempts):
        things = [_realise_object(o, rng) for o in spec.objects]
        if spec.relation:
            things[1] = _beside(things[0], things[1], spec.relation, rng)
        inside = all(t.half + 1 <= c <= SIDE - t.half - 1 for t in things for c in (t.x, t.y))
        pairs = [(a, b) for i, a in enumerate(things) for b in things[:i]]
        if inside and all(max(abs(a.x - b.x), abs(a.y - b.y)) >= a.half + b.half + GAP for a, b in pairs):
            return Scene(spec.background, tuple(things))
    return None


def sample(rng: np.random.Generator, held_out: bool) -> tuple[PromptSpec, Scene]:
    """A random prompt of one split with a scene."""
    while True:
        spec = sample_spec(rng)
        if is_held_out(spec.text()) == held_out:
            scene = realise(spec, rng)
            if scene:
                return spec, scene


def _pick(rng: np.random.Generator, names: Iterable[str]) -> str:
    choices = list(names)
    return str(choices[rng.integers(len(choices))])


def _realise_object(spec: ObjectSpec, rng: np.random.Generator) -> Thing:
    half = SIZES[spec.size or _pick(rng, SIZES)]
    if spec.place:
        x, y = (c + int(rng.choice(JITTER)) for c in PLACES[spec.place])
    else:
        x, y = (float(c) * RASTER for c in rng.integers(2, SIDE // RASTER - 1, 2))
    return Thing(spec.colour, spec.shape, x, y, half)


def _beside(first: Thing, second: Thing, relation: str, rng: np.random.Generator) -> Thing:
    """`second` moved so that `first` is `relation` it: at least 48 pixels along the axis, at most 8 across."""
    dx, dy = RELATIONS[relation]
    along, across = int(rng.choice(ALONG)), int(rng.choice(JITTER))
    return replace(second, x=first.x - dx * along + abs(dy) * across, y=first.y - dy * along + abs(dx) * across)
