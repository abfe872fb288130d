"""The named inputs and outputs of a model's components, and the names of their arrays in test vectors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from snapgen_deploy.drawing.pipeline import Condition
from snapgen_deploy.export.base import Arrays, Role
from snapgen_deploy.families.component import MASK, TOKENS, Components, Drawing, Ports
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models import ModelConfig

NEGATIVE = "negative."  # begins the names of recorded arrays that are of the negative prompt


def roles_of(config: ModelConfig) -> tuple[Role, ...]:
    """The components that a checkpoint of this configuration holds, in the order in which drawing a picture uses them."""
    return components_of(config).names


def ports_of(config: ModelConfig, plan: Drawing, role: Role) -> Ports:
    """The inputs and outputs of a component, and a one-line description of it."""
    return components_of(config)[role].called(plan)


def recorded_tokens(
    components: Components,
    arrays: Mapping[str, np.ndarray],
    rows: Sequence[int],
    roles: Collection[Role] | None = None,
    kind: str = "",
) -> dict[Role, Arrays]:
    """The inputs of each text encoder for some prompts, read from recorded arrays; `roles` restricts which encoders.

    `kind` is `NEGATIVE` for the negative prompt's.
    """
    return {
        spec.name: {name: np.array(arrays[f"{kind}{spec.reads.arrays}{name}"][list(rows)]) for name in (TOKENS, MASK)}
        for spec in components.encoders
        if roles is None or spec.name in roles
    }


def token_arrays(components: Components, inputs: Mapping[Role, Arrays]) -> Arrays:
    """The inputs of text encoders, under the names that recorded arrays use; the inverse of `recorded_tokens`."""
    return {f"{components[role].reads.arrays}{name}": value for role, given in inputs.items() for name, value in given.items()}


def recorded_conditions(
    components: Components,
    arrays: Mapping[str, np.ndarray],
    rows: Sequence[int],
    *,
    text: Sequence[str],
    roles: Collection[Role] | None = None,
    prefix: str = "",
) -> list[Condition]:
    """What recorded pictures are of: the prompts, and with guidance the negative prompts.

    `text` names the student's text inputs, which are returned as they were recorded, also those of text encoders; names of
    their arrays begin with `prefix`. `roles` restricts which encoders get tokens.
    """
    kinds = ("", NEGATIVE)[: components.denoiser.rows]
    return [
        Condition(
            recorded_tokens(components, arrays, rows, roles, kind),
            {name: np.array(arrays[f"{prefix}{kind}{name}"][list(rows)]) for name in text},
        )
        for kind in kinds
    ]


def condition_arrays(components: Components, conditions: Sequence[Condition], prefix: str = "") -> Arrays:
    """The inverse of `recorded_conditions`."""
    found: Arrays = {}
    for kind, condition in zip(("", NEGATIVE), conditions, strict=False):
        found |= {f"{kind}{name}": value for name, value in token_arrays(components, condition.tokens).items()}
        found |= {f"{prefix}{kind}{name}": value for name, value in condition.text.items()}
    return found


def text_inputs(config: ModelConfig) -> tuple[str, ...]:
    """Names of the student's text inputs."""
    return tuple(name for s in config.student.text_streams for name in s.shapes)


def absent_text(config: ModelConfig, rows: int = 1) -> Arrays:
    """Embeddings (rows, L, dim) and the rest of the text streams that stay empty: zeros."""
    return empty_text(config, config.absent_streams, rows)


def empty_text(config: ModelConfig, streams: Collection[str], rows: int = 1) -> Arrays:
    """Embeddings (rows, L, dim), masks (rows, L) and pooled vectors (rows, P) of some text streams without a token: zeros."""
    found: Arrays = {}
    for s in config.student.text_streams:
        if s.name in streams:
            found |= {name: np.zeros((rows, *shape), np.float32) for name, shape in s.shapes.items()}
    return found
