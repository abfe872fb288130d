"""Which tensors a checkpoint of a configuration has."""

from __future__ import annotations

from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models.config import ModelConfig


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a checkpoint with this configuration; built without storage."""
    found: dict[str, tuple[int, ...]] = {}
    for spec in components_of(config).largest_first:
        found |= {f"{spec.name}.{name}": shape for name, shape in spec.stored_shapes().items()}
    return found
