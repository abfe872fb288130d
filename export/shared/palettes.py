"""A component's weights that become palettes, and how they are found in a converted graph."""

from __future__ import annotations

import hashlib

import numpy as np

from snapgen_deploy.export.base import Component


def weights_of(component: Component) -> dict[str, np.ndarray]:
    """The weights of the component's palettes, by their names; one that the network does not have is left out."""
    tensors = dict((*component.module.named_parameters(), *component.module.named_buffers()))
    return {name: tensors[name].detach().numpy() for name in component.palettes if name in tensors}


def digest(values: np.ndarray) -> bytes:
    """SHA-256 of an array's shape and bytes."""
    return hashlib.sha256(repr(values.shape).encode() + np.ascontiguousarray(values).tobytes()).digest()
