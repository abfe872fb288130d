"""What a manifest says of classifier-free guidance, which an app computes outside of the student's network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from snapgen_deploy.drawing.pipeline import tokenize_all
from snapgen_deploy.export.base import Role
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models import ModelConfig

GUIDED = "velocity = negative + scale * (prompt - negative), of the student's two rows; then one step with it"
UNGUIDED = "no guidance: one call of the student per step"


def guidance_record(config: ModelConfig, tokenizers: Mapping[Role, str]) -> dict[str, Any] | None:
    """Scale, rows of a call, and the negative prompt with its tokens; None for a student without guidance.

    `tokenizers` has the text of a tokenizer for the text encoders that have one.

    Raises:
        BadInput: if the tokenizers cannot read the negative prompt.
    """
    if not config.guided:
        return None
    components = components_of(config)
    read = {} if len(tokenizers) < len(components.encoders) else tokenize_all(components, tokenizers, config.negative_prompt)
    return {
        "scale": config.guidance_scale,
        "negative_prompt": config.negative_prompt,
        "rows": ["prompt", "negative prompt"],
        "formula": GUIDED,
        "inputs": {role: {name: value[0].tolist() for name, value in given.items()} for role, given in read.items()},
        "note": "both rows have the same latent; text that no encoder makes is zeros for the negative prompt, its mask too",
    }
