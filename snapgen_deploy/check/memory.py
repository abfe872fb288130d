"""Peak memory of the process that runs a target's saved files: predicted from the configuration."""

from __future__ import annotations

import math

from snapgen_deploy.checkpoint.networks import stays_on_disk
from snapgen_deploy.export.spec import TargetSpec
from snapgen_deploy.families.component import ComponentSpec
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models.config import ModelConfig


def largest_tensor(spec: ComponentSpec) -> int:
    """Bytes of a component's largest tensor in fp32."""
    return max(4 * math.prod(shape) for shape in spec.stored_shapes().values())


def check_bytes(config: ModelConfig, width: str, record: TargetSpec, precision: str, activations: int) -> int:
    """Predicted peak in bytes.

    Args:
        config: Of the model, with all components that the files hold.
        width: Of the elastic component.
        record: Of the target; its figures are above everything that was measured.
        precision: Of the files.
        activations: Bytes of the largest ones of a call, over all picture sizes.
    """
    held, added = 0, 0
    for spec in components_of(config):
        weights = 4 * spec.parameters(width)
        if stays_on_disk(spec, width) and precision in record.by_tensor:
            added += record.memory.checking_by_tensor.of(weights, largest_tensor(spec))
        else:
            held += weights
    return record.memory.checking.of(held, activations) + added
