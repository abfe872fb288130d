"""The operations, one module per family; importing this package fills `registry.OPS`."""

from snapgen_deploy.export.mil.ops import (
    activation,
    arithmetic,
    attention,
    classify,
    constexpr,
    convolution,
    gather,
    image,
    linear,
    norm,
    pool,
    quantize,
    recurrent,
    reduction,
    sampling,
    shape,
    slicing,
    sorting,
    state,
    tensor,
)

__all__ = [
    "activation", "arithmetic", "attention", "classify", "constexpr", "convolution", "gather", "image", "linear", "norm",
    "pool", "quantize", "recurrent", "reduction", "sampling", "shape", "slicing", "sorting", "state", "tensor",
]  # fmt: skip
