"""What a picture holds and how it is drawn: one to three coloured shapes on a plain background, 128 x 128 pixels.

Coordinates are pixels, x to the right and y down; an object fills the square centre +- half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDE = 128
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "green": (40, 165, 60),
    "blue": (40, 95, 230),
    "yellow": (245, 215, 40),
    "purple": (150, 55, 185),
    "orange": (245, 125, 25),
    "cyan": (60, 205, 225),
    "pink": (250, 130, 190),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (15, 15, 18),
    "gray": (125, 125, 125),
    "white": (242, 242, 242),
    "navy": (15, 25, 85),
}
SHAPES = ("circle", "square", "triangle", "ring", "cross", "diamond")
SIZES: dict[str, tuple[float, float]] = {"small": (11.0, 13.0), "large": (18.0, 20.0)}  # range of `half`
COLUMNS = {"left": 25.0, "center": 64.0, "right": 103.0}
ROWS = {"top": 25.0, "center": 64.0, "bottom": 103.0}
PLACES: dict[str, tuple[float, float]] = {
    "top left": (25.0, 25.0),
    "top": (64.0, 25.0),
    "top right": (103.0, 25.0),
    "left": (25.0, 64.0),
    "center": (64.0, 64.0),
    "right": (103.0, 64.0),
    "bottom left": (25.0, 103.0),
    "bottom": (64.0, 103.0),
    "bottom right": (103.0, 103.0),
}
RELATIONS: dict[str, tuple[int, int]] = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}

Picture = NDArray[np.uint8]
Mask = NDArray[np.float32]


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    colour: str
    shape: str
    x: float
    y: float
    half: float


@dataclass(frozen=True)
class Scene:
    """A background and the objects on it."""

    background: str
    things: tuple[Thing, ...]


def distance(shape: str, x: Mask, y: Mask, half: float) -> Mask:
    """Signed distance in pixels (negative inside) of points relative to the centre; exact near straight edges."""
    ax, ay = np.abs(x), np.abs(y)
    if shape == "circle":
        return np.hypot(x, y) - half
    if shape == "square":
        return np.maximum(ax, ay) - half
    if shape == "triangle":
        return np.maximum(y - half, (2 * ax - (y + half)) / np.float32(5**0.5))
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.72 * half) - 0.28 * half
    if shape == "cross":
        return np.minimum(np.maximum(ax - half, ay - 0.34 * half), np.maximum(ax - 0.34 * half, ay - half))
    if shape == "diamond":
        return (ax + ay - half) / np.float32(2**0.5)
    raise ValueError(f"unknown shape {shape!r}; expected one of {', '.join(SHAPES)}")


def coverage(shape: str, x: float, y: float, half: float, rows: slice, cols: slice) -> Mask:
    """Share of every pixel of a window that the object covers (antialiased)."""
    py = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(0.5 - y)
    px = np.arange(cols.start, cols.stop, dtype=np.float32)[None, :] + np.float32(0.5 - x)
    inside: Mask = np.clip(0.5 - distance(shape, px + 0 * py, py + 0 * px, half), 0.0, 1.0).astype(np.float32)
    return inside


def render(scene: Scene) -> Picture:
    """The picture of a scene, (128, 128, 3)."""
    image = np.empty((SIDE, SIDE, 3), np.float32)
    image[:] = BACKGROUNDS[scene.background]
    for thing in scene.things:
        rows, cols = (slice(max(int(c - thing.half) - 1, 0), min(int(c + thing.half) + 3, SIDE)) for c in (thing.y, thing.x))
        alpha = coverage(thing.shape, thing.x, thing.y, thing.half, rows, cols)[..., None]
        image[rows, cols] += alpha * (np.array(COLOURS[thing.colour], np.float32) - image[rows, cols])
    return (image + 0.5).astype(np.uint8)
