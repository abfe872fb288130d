"""Which tensors a checkpoint of a configuration has."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from snapgen_deploy.families.base import Family
from snapgen_deploy.families.registry import components_of, family_of
from snapgen_deploy.models.config import ModelConfig
from snapgen_deploy.models.serialise import config_to_json

_KEPT = 8  # configurations; one command opens the same checkpoint several times


@dataclass(frozen=True)
class _Asked:
    """A configuration, the same as another where both are written alike."""

    family: Family
    text: str
    config: ModelConfig = field(compare=False)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a checkpoint with this configuration; built without storage."""
    return dict(_shapes(_Asked(family_of(config), config_to_json(config), config)))


@lru_cache(_KEPT)
def _shapes(asked: _Asked) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for spec in components_of(asked.config).largest_first:
        found |= {f"{spec.name}.{name}": shape for name, shape in spec.stored_shapes().items()}
    return found
