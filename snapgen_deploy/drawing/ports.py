"""The named inputs and outputs of a model's components, and the arrays that test vectors have of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from snapgen_deploy.export.base import Arrays, Role
from snapgen_deploy.families.component import MASK, TOKENS, Components, Drawing, Ports
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models import ModelConfig


def roles_of(config: ModelConfig) -> tuple[Role, ...]:
    """The components that a checkpoint of this configuration holds, in the order in which a picture uses them."""
    return components_of(config).names


def ports_of(config: ModelConfig, plan: Drawing, role: Role) -> Ports:
    """Inputs, outputs and a one-line description of a component."""
    return components_of(config)[role].ports(plan)


def recorded_tokens(
    components: Components, arrays: Mapping[str, np.ndarray], row: slice, roles: Collection[Role] | None = None
) -> dict[Role, Arrays]:
    """What each text encoder was given (of `roles` only, where these are named), one prompt of recorded arrays."""
    return {
        spec.name: {name: np.array(arrays[f"{spec.reads.arrays}{name}"][row]) for name in (TOKENS, MASK)}
        for spec in components.encoders
        if roles is None or spec.name in roles
    }


def token_arrays(components: Components, inputs: Mapping[Role, Arrays]) -> Arrays:
    """What text encoders were given, under the names of recorded arrays."""
    return {f"{components[role].reads.arrays}{name}": value for role, given in inputs.items() for name, value in given.items()}
