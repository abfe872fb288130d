"""The contents of pictures and how they are rendered: one to three coloured shapes on a plain background, 128 x 128 pixels.

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
SIZES: dict[str, float] = {"small": 12.0, "large": 19.0}  # `half`
RASTER = 8  # centres are at multiples of this many pixels, one latent cell
PLACES: dict[str, tuple[float, float]] = {
    "top left": (24.0, 24.0),
    "top": (64.0, 24.0),
    "top right": (104.0, 24.0),
    "left": (24.0, 64.0),
    "center": (64.0, 64.0),
    "right": (104.0, 64.0),
    "bottom left": (24.0, 104.0),
    "bottom": (64.0, 104.0),
    "bottom right": (104.0, 104.0),
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
    tip, bar, inner = 2 * ax - (y + half), 0.34 * half, 0.72 * half
    if shape == "circle":
        gap = np.hypot(x, y) - half
    elif shape == "square":
        gap = np.maximum(ax, ay) - half
    elif shape == "triangle":
        gap = np.maximum(y - half, tip / 5**0.5)
    elif shape == "ring":
        gap = np.abs(np.hypot(x, y) - inner) - 0.28 * half
    elif shape == "cross":
        gap = np.minimum(np.maximum(ax - half, ay - bar), np.maximum(ax - bar, ay - half))
    elif shape == "diamond":
        gap = (ax + ay - half) / 2**0.5
    else:
        raise ValueError(f"unknown shape {shape!r}; expected one of {', '.join(SHAPES)}")
    return np.asarray(gap, dtype=np.float32)


def coverage(shape: str, x: float, y: float, half: float, rows: slice, cols: slice) -> Mask:
    """For every pixel of a window, the share that the object covers (antialiasing)."""
    py = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(0.5 - y)
    px = np.arange(cols.start, cols.stop, dtype=np.float32)[None, :] + np.float32(0.5 - x)
    inside: Mask = np.clip(0.5 - distance(shape, px + 0 * py, py + 0 * px, half), 0.0, 1.0).astype(np.float32)
    return inside


def render(scene: Scene) -> Picture:
    """Render a scene to a picture (128, 128, 3)."""
    image = np.empty((SIDE, SIDE, 3), np.float32)
    image[:] = BACKGROUNDS[scene.background]
    for thing in scene.things:
        rows, cols = (slice(max(int(c - thing.half) - 1, 0), min(int(c + thing.half) + 3, SIDE)) for c in (thing.y, thing.x))
        alpha = coverage(thing.shape, thing.x, thing.y, thing.half, rows, cols)[..., None]
        image[rows, cols] += alpha * (np.array(COLOURS[thing.colour], np.float32) - image[rows, cols])
    return (image + 0.5).astype(np.uint8)
