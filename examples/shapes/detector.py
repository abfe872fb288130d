"""A detector without learned parts: which objects a picture shows, and whether a prompt asks for them.

1. The background is the named colour that most of the picture is close to.
2. Objects are connected regions that differ from it. A region's colour is that of its inside, which must be uniform.
3. Its outline is the contour at which half a pixel is covered. Templates of all shapes are fitted to it, moved and scaled by
   up to two pixels around its bounding box (tips are thinner than a pixel, so that the box alone is too small). The shape is
   the one with the best overlap; it must overlap well, clearly better than the next, and have the right number of holes.
   The size is that of the fitted template. Between "small" and "large" there is a gap that counts as neither.
4. Regions are matched one to one with the objects of the prompt, so that as many as possible are entirely right.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from examples.shapes.prompts import ObjectSpec, PromptSpec
from examples.shapes.scenes import BACKGROUNDS, COLOURS, PLACES, RELATIONS, SHAPES, SIDE, Picture, coverage

NEAR = 60.0  # RGB distance within which a colour counts as the named one
DIFFERENT = 50.0  # RGB distance from the background at which a pixel belongs to an object
SPECK = 20  # regions of fewer pixels are noise
UNIFORM = 0.85  # share of an object's inside that must have its colour
OVERLAP = 0.85  # least intersection over union with the template of the shape
MARGIN = 0.03  # least difference to the overlap of any other shape
SQUARISH = 1.25  # largest ratio of the sides of the bounding box
SIZE_RANGES = {"small": (9.5, 14.5), "large": (16.5, 21.5)}
FITTED = tuple(  # how much a template is grown, and moved right and down
    itertools.product((-0.5, 0.0, 0.5, 1.0, 1.5, 2.0), (-0.5, 0.0, 0.5), (-1.0, -0.5, 0.0, 0.5))
)
BESIDE = 20.0  # least distance in pixels between centres along the axis of a relation

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """One region of a picture; a property that is not clear is ''."""

    colour: str
    shape: str
    size: str
    x: float
    y: float

    def place(self) -> str:
        """The nearest of the nine places."""
        return min(PLACES, key=lambda name: np.hypot(self.x - PLACES[name][0], self.y - PLACES[name][1]))


@dataclass(frozen=True)
class Verdict:
    """The comparison of a picture with its prompt."""

    background: bool
    objects: tuple[bool, ...]  # per object of the prompt: entirely right
    found: int

    @property
    def entirely(self) -> bool:
        """Background and every object right, and nothing else in the picture."""
        return self.background and all(self.objects) and self.found == len(self.objects)


def nearest_name(colour: Float, palette: dict[str, tuple[int, int, int]]) -> tuple[str, float]:
    """The closest named colour and its RGB distance."""
    gaps = {name: float(np.linalg.norm(colour - np.array(rgb, np.float32))) for name, rgb in palette.items()}
    name = min(gaps, key=gaps.__getitem__)
    return name, gaps[name]


def distances(pixels: Float, colour: Float | tuple[int, int, int]) -> NDArray[np.float64]:
    """The RGB distance of every pixel (..., 3) from a colour."""
    gaps = pixels - np.asarray(colour, np.float64)
    found: NDArray[np.float64] = np.sqrt(np.einsum("...i,...i->...", gaps, gaps))
    return found


def background_of(image: Float) -> str:
    """The background colour that most pixels are close to; '' if these are less than a third of the picture."""
    counts = {n: int((distances(image, c) < NEAR).sum()) for n, c in BACKGROUNDS.items()}
    name = max(counts, key=counts.__getitem__)
    return name if counts[name] * 3 >= image.shape[0] * image.shape[1] else ""


def detect(picture: Picture) -> tuple[str, list[Found]]:
    """The background ('' if unclear) and the objects of a picture (128, 128, 3)."""
    image = picture.astype(np.float32)
    background = background_of(image)
    if not background:
        return "", []
    near = distances(image, BACKGROUNDS[background]) < NEAR
    base = np.median(image[near], axis=0)
    regions, count = ndimage.label(distances(image, base) > DIFFERENT, structure=np.ones((3, 3)))
    masks = (regions == i + 1 for i in range(count))
    return background, [describe(image, mask, base) for mask in masks if mask.sum() >= SPECK]


def describe(image: Float, region: Bool, base: Float) -> Found:
    """Colour, shape, size and place of one region."""
    inside = ndimage.binary_erosion(region, iterations=2)
    pixels = image[inside if inside.sum() >= 8 else region]
    middle = np.median(pixels, axis=0)
    colour, gap = nearest_name(middle, COLOURS)
    uniform = float((distances(pixels, middle) < NEAR).mean())
    colour = colour if gap < NEAR and uniform >= UNIFORM else ""
    direction = middle - base
    alpha = (image - base) @ direction / float(direction @ direction)  # share of the pixel that the object covers
    outline = (alpha > 0.5) & ndimage.binary_dilation(region)
    if outline.sum() < SPECK:
        outline = region
    ys, xs = np.nonzero(outline)
    top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    longer, shorter = max(bottom - top, right - left), min(bottom - top, right - left)
    x, y, half = float(left + right) / 2, float(top + bottom) / 2, float(longer + shorter) / 4
    if longer > SQUARISH * shorter or half > SIDE / 3:
        return Found(colour, "", "", x, y)
    shape, x, y, half = shape_of(outline, x, y, half)
    size = next((name for name, (low, high) in SIZE_RANGES.items() if low <= half <= high), "")
    return Found(colour, shape, size, x, y)


@functools.lru_cache(maxsize=100_000)
def template(shape: str, half: float, x: float, y: float, side: int) -> tuple[NDArray[np.uint8], int]:
    """The pixels of a `side` x `side` window that an object covers by more than half: packed bits, and their number."""
    whole = slice(0, side)
    inside: Bool = coverage(shape, x, y, half, whole, whole) > 0.5
    return np.packbits(inside), int(inside.sum())


@functools.lru_cache(maxsize=10_000)
def templates(shape: str, half: float, x: float, y: float, side: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A row of such bits for each of `FITTED`, and the number of pixels of each."""
    rows, areas = zip(*(template(shape, half + grown, x + dx, y + dy, side) for grown, dx, dy in FITTED), strict=True)
    return np.stack(rows), np.array(areas)


def shape_of(outline: Bool, x: float, y: float, half: float) -> tuple[str, float, float, float]:
    """The shape that overlaps best ('' if not well or not clearly) with the fitted centre and half size."""
    margin = int(half) + 5
    column, row = int(x) - margin, int(y) - margin
    padded = np.pad(outline, 2 * margin)
    window = np.packbits(padded[row + 2 * margin :, column + 2 * margin :][: 2 * margin, : 2 * margin])
    area = int(outline.sum())
    overlaps: dict[str, tuple[float, float, float, float]] = {}
    for name in SHAPES:
        packed, areas = templates(name, half, x - column, y - row, 2 * margin)
        common = np.bitwise_count(packed & window).sum(axis=1, dtype=np.int64)
        found = common / (area + areas - common)
        best = int(found.argmax())
        grown, dx, dy = FITTED[best]
        overlaps[name] = (float(found[best]), x + dx, y + dy, half + grown)
    first, second = sorted(overlaps, key=lambda name: -overlaps[name][0])[:2]
    overlap, x, y, half = overlaps[first]
    filled = ndimage.binary_fill_holes(outline)
    hole = int(filled.sum()) - area >= 0.05 * int(filled.sum())
    clear = overlap >= OVERLAP and overlap - overlaps[second][0] >= MARGIN and hole == (first == "ring")
    return first if clear else "", x, y, half


def fits(found: Found, wanted: ObjectSpec) -> bool:
    """Whether a region is the wanted object in colour, shape, size and place."""
    return (
        found.colour == wanted.colour
        and found.shape == wanted.shape
        and (found.size == wanted.size if wanted.size else found.size != "")
        and (wanted.place is None or found.place() == wanted.place)
    )


def holds(relation: str, first: Found, second: Found) -> bool:
    """Whether `first` is `relation` `second`: clearly along the axis, and more along it than across."""
    dx, dy = RELATIONS[relation]
    x, y = first.x - second.x, first.y - second.y
    along, across = (x * dx, y) if dx else (y * dy, x)
    return along >= BESIDE and along > abs(across)


def judge(picture: Picture, spec: PromptSpec) -> Verdict:
    """Which of the prompt's objects the picture shows entirely right, relation included."""
    background, found = detect(picture)
    count = len(spec.objects)
    best: tuple[bool, ...] = (False,) * count
    candidates: list[int | None] = [*range(len(found)), *[None] * count]
    if len(found) > 8:  # fragments: nothing to match
        candidates = [None] * count
    for chosen in set(itertools.permutations(candidates, count)):
        matched = [None if i is None else found[i] for i in chosen]
        right = [m is not None and fits(m, o) for m, o in zip(matched, spec.objects, strict=True)]
        first, second = matched[0], matched[1] if count > 1 else None
        if spec.relation and not (first and second and holds(spec.relation, first, second)):
            right[:2] = [False, False]
        if sum(right) > sum(best):
            best = tuple(right)
    return Verdict(background == spec.background, best, len(found))
