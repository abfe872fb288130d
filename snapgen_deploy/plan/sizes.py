"""Picture sizes: which ones fit a network, and their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.registry import family_of
from snapgen_deploy.models.config import ModelConfig

MOST_NAMED = 4  # picture sizes in a warning


@dataclass(frozen=True)
class Size:
    """One picture size of a plan, and what depends on it."""

    resolution: tuple[int, int]  # picture height, width in pixels
    latent: tuple[int, int, int]  # channels, height, width
    forms: tuple[tuple[str, str], ...] = ()  # target key -> kernel form of the local attention

    @property
    def name(self) -> str:
        """`<height>x<width>`, in file names, functions and on the command line."""
        return size_name(self.resolution)


_NEAR = 5  # units around a side that are looked at first


def size_name(resolution: Sequence[int]) -> str:
    """(height, width) -> `<height>x<width>`.

    >>> size_name((768, 1024))
    '768x1024'
    """
    return f"{resolution[0]}x{resolution[1]}"


def untrained_sizes(config: ModelConfig, resolutions: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """A warning for each picture size that the model was not trained at; none if it does not say at which it was."""
    known = config.trained_resolutions
    said = ", ".join(map(size_name, known[:MOST_NAMED])) + (", ..." if len(known) > MOST_NAMED else "")
    return tuple(
        f"{size_name(r)}: the checkpoint was not trained at this picture size, but at {said}"
        for r in resolutions
        if known and r not in known
    )


def sizes_of(config: ModelConfig, resolutions: Sequence[tuple[int, int]]) -> tuple[Size, ...]:
    """The picture sizes in their order.

    Raises:
        BadInput: if one occurs twice or does not fit the network.
    """
    twice = [r for i, r in enumerate(resolutions) if r in resolutions[:i]]
    if twice:
        raise BadInput(f"resolution {size_name(twice[0])} was given twice; give each once, the default one first")
    return tuple(Size(r, latent_of(config, r)) for r in resolutions)


def latent_of(config: ModelConfig, size: tuple[int, int]) -> tuple[int, int, int]:
    """The latent (channels, height, width) of a picture size (height, width) in pixels.

    >>> from snapgen_deploy.models.presets import snapgenpp
    >>> latent_of(snapgenpp(), (1024, 1024))
    (16, 128, 128)

    Raises:
        BadInput: if the size does not fit the network; the message names the nearest sizes that do.
    """
    factor, family = config.student.latent_factor, family_of(config)
    height, width = size[0] // factor, size[1] // factor
    if all(side % factor == 0 for side in size) and not family.size_problems(config, (height, width)):
        return config.student.latent_channels, height, width
    near = ", ".join(map(size_name, nearest_sizes(config, size)))
    raise BadInput(
        f"resolution {size_name(size)} does not fit {family.size_rule(config).constraints}; the nearest that do are {near}"
    )


def nearest_sizes(config: ModelConfig, size: tuple[int, int], count: int = 3) -> list[tuple[int, int]]:
    """The picture sizes nearest to `size` that fit the network; where none is near, that of the configuration."""
    family, factor = family_of(config), config.student.latent_factor
    rule, reach = family.size_rule(config), _NEAR

    def within(units: int) -> set[tuple[int, int]]:
        spans = [[rule.unit * max(1, side // rule.unit + d) for d in range(-units, units + 1)] for side in size]
        return {(h, w) for h in spans[0] for w in spans[1] if not family.size_problems(config, (h // factor, w // factor))}

    while not (sound := within(reach)) and reach < rule.reach:
        reach *= 2
    sound = sound or {config.resolution}
    return sorted(sound, key=lambda s: (abs(s[0] - size[0]) + abs(s[1] - size[1]), s))[:count]
