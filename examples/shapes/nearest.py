"""Finds the picture that fulfils a prompt and is nearest to a drawn one: an exact search over all scenes of the prompt.

Objects are aligned to the cells' raster and do not overlap. So what an object adds to the squared distance between two latents
is (nearly) independent of other objects: a correlation of the drawn latent with the object's patch, for all places at once. The
best valid combination of objects is then rendered and encoded like a training picture.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from examples.shapes.autoencoder import encode
from examples.shapes.prompts import ALONG, GAP, JITTER, ObjectSpec, PromptSpec
from examples.shapes.scenes import PLACES, RASTER, RELATIONS, SIDE, SIZES, Scene, Thing
from examples.shapes.stages import pictures
from snapgen_deploy.models import DecoderConfig

BEFORE, AFTER = 3, 3  # cells of a patch before its centre, and from it on; a large object extends 19 pixels
CENTRES = SIDE // RASTER + 1
RISE = 0.5  # increase of a size's price, in squared deviations of the latent, for each time that it is found too often

Numbers = NDArray[np.float64]
Costs = dict[float, Numbers]  # size -> for centres (row, column) of the raster


@dataclass(frozen=True)
class Options:
    """Ways to place some objects: x, y, half (n, objects) in pixels, and what each way adds to the distance (n,)."""

    x: Numbers
    y: Numbers
    half: Numbers
    cost: Numbers

    def keep(self, chosen: NDArray[np.bool_]) -> Options:
        """The ways that a mask (n,) selects."""
        return Options(self.x[chosen], self.y[chosen], self.half[chosen], self.cost[chosen])

    def valid(self) -> Options:
        """The ways with all objects inside the picture and a gap between any two, as in `prompts.realise`."""
        inside = np.all((self.half + 1 <= self.x) & (self.x <= SIDE - self.half - 1), axis=1)
        inside &= ((self.half + 1 <= self.y) & (self.y <= SIDE - self.half - 1)).all(1)
        for a, b in itertools.combinations(range(self.x.shape[1]), 2):
            apart = np.maximum(abs(self.x[:, a] - self.x[:, b]), abs(self.y[:, a] - self.y[:, b]))
            inside &= apart >= self.half[:, a] + self.half[:, b] + GAP
        return self.keep(inside)

    def and_(self, other: Options) -> Options:
        """Every combination of a way here with a way there."""
        here, there = (i.ravel() for i in np.indices((len(self.cost), len(other.cost))))
        joined = [np.concatenate([a[here], b[there]], 1) for a, b in zip(self.places, other.places, strict=True)]
        return Options(joined[0], joined[1], joined[2], self.cost[here] + other.cost[there])

    @property
    def places(self) -> tuple[Numbers, Numbers, Numbers]:
        """x, y and half."""
        return self.x, self.y, self.half


class Nearest:
    """Finds the nearest latents that fulfil the prompts, for drawn latents."""

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config
        self.prices = dict.fromkeys(SIZES.values(), 0.0)  # added to the distance for a size that the prompt leaves open

    def latents(self, scenes: list[Scene]) -> Tensor:
        """The latents (B, C, h, w) of scenes."""
        return encode(self.config, pictures(scenes))

    @functools.lru_cache(maxsize=512)  # noqa: B019 - one instance, 384 kinds of objects
    def patch(self, background: str, colour: str, shape: str, half: float) -> tuple[Tensor, float]:
        """Twice the object's difference from the background (C, 6, 6), and what it adds to the distance from zero."""
        middle = SIDE / 2
        empty, one = self.latents([Scene(background, ()), Scene(background, (Thing(colour, shape, middle, middle, half),))])
        centre = SIDE // RASTER // 2
        part = slice(centre - BEFORE, centre + AFTER)
        return 2 * (one - empty)[:, part, part], float(one.square().sum() - empty.square().sum())

    def costs(self, drawn: Tensor, background: str, spec: ObjectSpec) -> Costs:
        """What the object adds to the squared distance to `drawn` (C, h, w), in every size that its prompt allows."""
        padded, found = F.pad(drawn, (BEFORE, AFTER, BEFORE, AFTER)), {}
        for half in [SIZES[spec.size]] if spec.size else SIZES.values():
            kernel, own = self.patch(background, spec.colour, spec.shape, half)
            cost = own - F.conv2d(padded[None], kernel[None])[0, 0].double().numpy()
            found[half] = cost if spec.size else cost + self.prices[half]
        return found

    def scene(self, drawn: Tensor, spec: PromptSpec) -> Scene:
        """The scene of the prompt whose latent is nearest to `drawn` (C, h, w)."""
        drawn = drawn.detach().float()
        rest = list(spec.objects)
        if spec.relation:
            ways = self.related(drawn, spec)
            rest = rest[2:]
        else:
            ways = self.alone(drawn, spec.background, rest[0])
            rest = rest[1:]
        for other in rest:
            ways = ways.and_(self.alone(drawn, spec.background, other)).valid()
        best = int(ways.cost.argmin())
        x, y, half = (part[best] for part in ways.places)
        things = (Thing(o.colour, o.shape, float(x[i]), float(y[i]), float(half[i])) for i, o in enumerate(spec.objects))
        return Scene(spec.background, tuple(things))

    def alone(self, drawn: Tensor, background: str, spec: ObjectSpec) -> Options:
        """One object in every place that its prompt allows, without regard to others."""
        return options(self.costs(drawn, background, spec), centres(spec)).valid()

    def related(self, drawn: Tensor, spec: PromptSpec) -> Options:
        """The first two objects, one beside the other as in `prompts.realise`."""
        assert spec.relation
        first, second = spec.objects[:2]
        ways, costs = self.alone(drawn, spec.background, first), self.costs(drawn, spec.background, second)
        dx, dy = RELATIONS[spec.relation]
        found = []
        for along, across in itertools.product(ALONG, JITTER):
            at = (ways.x[:, 0] - dx * along + abs(dy) * across, ways.y[:, 0] - dy * along + abs(dx) * across)
            other = options(costs, at)
            times = len(costs)  # sizes of the second
            pairs = [np.concatenate([np.tile(a, (times, 1)), b], 1) for a, b in zip(ways.places, other.places, strict=True)]
            found.append(Options(pairs[0], pairs[1], pairs[2], np.tile(ways.cost, times) + other.cost))
        return Options(*(np.concatenate([getattr(f, n) for f in found]) for n in ("x", "y", "half", "cost"))).valid()

    def balance(self, specs: list[PromptSpec], scenes: list[Scene]) -> None:
        """Raise the price of the size that was found more often than the other where prompts leave it open."""
        pairs = [(o, t) for p, s in zip(specs, scenes, strict=True) for o, t in zip(p.objects, s.things, strict=True)]
        found = [thing.half for spec, thing in pairs if not spec.size]
        for half in self.prices:
            self.prices[half] += RISE * (found.count(half) - len(found) / len(self.prices))

    def __call__(self, drawn: Tensor, specs: list[PromptSpec]) -> tuple[Tensor, list[Scene]]:
        """The nearest fulfilling latents (B, C, h, w) to `drawn`, and their scenes."""
        scenes = [self.scene(x, spec) for x, spec in zip(drawn, specs, strict=True)]
        return self.latents(scenes), scenes


def options(costs: Costs, at: tuple[Numbers, Numbers]) -> Options:
    """One object at the centres `at` (x and y, in pixels), in every size of `costs`, one after the other."""
    column, row = (np.clip(c / RASTER, 0, CENTRES - 1).astype(int) for c in at)  # those outside are dropped by `valid`
    x, y = (np.tile(c, len(costs))[:, None] for c in at)
    cost = np.concatenate([of_size[row, column] for of_size in costs.values()])
    return Options(x, y, np.repeat(list(costs), len(at[0]))[:, None].astype(float), cost)


def centres(spec: ObjectSpec) -> tuple[Numbers, Numbers]:
    """All centres (x, y), in pixels, that a prompt allows for an object, without regard to others."""
    if spec.place:
        x, y = PLACES[spec.place]
        pairs = [(x + dx, y + dy) for dx in JITTER for dy in JITTER]
    else:
        pairs = [(float(x * RASTER), float(y * RASTER)) for x in range(2, CENTRES - 2) for y in range(2, CENTRES - 2)]
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
