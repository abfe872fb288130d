"""States (coremltools: iOS18/states.py; `coreml_update_state` is saved as write_state and read_state)."""

from __future__ import annotations

from torch import Tensor

from snapgen_deploy.export.mil.ops.registry import op


@op("read_state", moves=True)
def read_state(input: Tensor) -> Tensor:
    """What the state holds; nothing here changes a tensor in place, so no copy is needed."""
    return input


@op("write_state", moves=True)
def write_state(input: Tensor, data: Tensor) -> Tensor:
    """What the state holds from now on (the interpreter puts the result in its place)."""
    if data.shape != input.shape:
        raise ValueError(f"the state has shape {list(input.shape)}, the data {list(data.shape)}")
    return data
