"""The named inputs and outputs of a model's components, and the names of their arrays in test vectors."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from snapgen_deploy.export.base import Arrays, Role
from snapgen_deploy.families.component import MASK, TOKENS, Components, Drawing, Ports
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models import ModelConfig


def roles_of(config: ModelConfig) -> tuple[Role, ...]:
    """The components that a checkpoint of this configuration holds, in the order in which drawing a picture uses them."""
    return components_of(config).names


def ports_of(config: ModelConfig, plan: Drawing, role: Role) -> Ports:
    """The inputs and outputs of a component, and a one-line description of it."""
    return components_of(config)[role].ports(plan)


def recorded_tokens(
    components: Components, arrays: Mapping[str, np.ndarray], row: slice, roles: Collection[Role] | None = None
) -> dict[Role, Arrays]:
    """The inputs of each text encoder for one prompt, read from recorded arrays; `roles` restricts which encoders."""
    return {
        spec.name: {name: np.array(arrays[f"{spec.reads.arrays}{name}"][row]) for name in (TOKENS, MASK)}
        for spec in components.encoders
        if roles is None or spec.name in roles
    }


def token_arrays(components: Components, inputs: Mapping[Role, Arrays]) -> Arrays:
    """The inputs of text encoders, under the names that recorded arrays use; the inverse of `recorded_tokens`."""
    return {f"{components[role].reads.arrays}{name}": value for role, given in inputs.items() for name, value in given.items()}


def absent_text(config: ModelConfig, rows: int = 1) -> Arrays:
    """Embeddings (rows, L, dim) and masks (rows, L) of the text streams that stay empty: zeros."""
    found: Arrays = {}
    for s in config.student.text_streams:
        if s.name in config.absent_streams:
            found[s.name] = np.zeros((rows, s.length, s.dim), np.float32)
            found[f"{s.name}_mask"] = np.zeros((rows, s.length), np.float32)
    return found
