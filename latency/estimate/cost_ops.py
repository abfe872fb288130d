"""The rules of `cost.trace_costs`: arithmetic and memory traffic of one operation, from the shapes of its tensors.

A MAC is one multiply-accumulate. Products: rows * columns * inner. Convolutions: outputs * inputs per group * taps (transposed
ones: inputs * outputs per group * taps). Element-wise work counts in bytes only, since memory limits it, not arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor

OpKind = Literal[
    "linear", "product", "pointwise", "conv", "depthwise", "softmax", "norm", "activation", "elementwise", "transpose", "slice",
    "concat", "reduce", "move", "view",
]  # fmt: skip
OP_KINDS: tuple[OpKind, ...] = (
    "linear",  # a product with stored weights
    "product",  # a product of two activations (attention)
    "pointwise",  # a 1x1 convolution
    "conv",  # a dense convolution with more taps, or a transposed one
    "depthwise",  # any grouped convolution
    "softmax",
    "norm",
    "activation",  # GELU, sigmoid, SiLU: one transcendental function per element
    "elementwise",
    "transpose",
    "slice",
    "concat",
    "reduce",  # means and maxima over axes or tiles
    "move",  # upsampling, embedding look-ups, type conversions
    "view",  # reshapes: nothing is computed or moved, but some runtimes call a function for each
)

RESHAPES = frozenset({"view", "_unsafe_view", "unsqueeze", "squeeze", "_reshape_alias"})
# Operations that do not appear in an exported graph. torch adds `clone` when a reshape follows a transpose; the transpose is
# already counted.
FREE = frozenset({"expand", "alias", "detach", "clone", "lift_fresh"})
# Several slices in one operation, each of which is counted: runtimes copy every part.
SPLITS = frozenset({"split", "split_with_sizes"})
TRANSPOSES = frozenset({"t", "transpose", "permute"})
PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm"})

_KIND: Mapping[str, OpKind] = MappingProxyType(
    {
        "_softmax": "softmax",
        "native_layer_norm": "norm",
        "native_group_norm": "norm",
        "gelu": "activation",
        "sigmoid": "activation",
        "silu": "activation",
        "tanh": "activation",
        "slice": "slice",
        "select": "slice",
        "cat": "concat",
        "embedding": "move",
        "upsample_nearest2d": "move",
        "pixel_shuffle": "move",
        "constant_pad_nd": "move",
        "_to_copy": "move",
        "mean": "reduce",
        "amax": "reduce",
        "sum": "reduce",
        "avg_pool2d": "reduce",
        "add": "elementwise",
        "sub": "elementwise",
        "mul": "elementwise",
        "div": "elementwise",
        "rsub": "elementwise",
        "rsqrt": "elementwise",
        "sqrt": "elementwise",
        "pow": "elementwise",
        "reciprocal": "elementwise",
        "clamp": "elementwise",
        "relu": "elementwise",
        "abs": "elementwise",
        "neg": "elementwise",
        "eq": "elementwise",
    }
)


class UnknownOperation(LookupError):
    """An operation that the cost model has no rule for: estimates must not leave out work silently."""


def kind_of(name: str, args: Sequence[Any], constant: Callable[[Tensor], bool]) -> OpKind:
    """The kind of an operation, by its aten name.

    Raises:
        UnknownOperation: if there is no rule for it.
    """
    if name in PRODUCTS:
        return "linear" if any(constant(a) for a in args[-2:]) else "product"
    if name == "convolution":
        if args[8] > 1:
            return "depthwise"
        return "conv" if args[6] or math.prod(args[1].shape[2:]) > 1 else "pointwise"
    if name not in _KIND:
        raise UnknownOperation(f"no cost rule for the operation '{name}'")
    return _KIND[name]


def macs_of(name: str, args: Sequence[Any], out: Tensor) -> int:
    """Multiply-accumulates of a product or a convolution; 0 for other operations."""
    if name in PRODUCTS:
        return out.numel() * int(args[-2].shape[-1])
    if name == "convolution":
        x, weight, transposed = args[0], args[1], args[6]
        # weight: (out, in/groups, taps) or, transposed, (in, out/groups, taps)
        return int((x if transposed else out).numel() * math.prod(weight.shape[1:]))
    return 0


def rows_of(name: str, args: Sequence[Any], inputs: Sequence[Tensor], out: Tensor) -> int:
    """Number of inner loops that an operation starts.

    Contiguous runs of a copy; rows of a norm or softmax; rows of an element-wise operation with inputs of different shapes; 0
    for an element-wise operation with equal shapes, which is one loop.
    """
    if name == "slice":
        return math.prod(out.shape[: _axis(args, out)])
    if name == "cat":
        return len(args[0]) * math.prod(out.shape[: _axis(args, out)])
    if _KIND.get(name) == "elementwise" and all(t.numel() in (1, out.numel()) for t in inputs):
        return 0
    return rows(out)


def _axis(args: Sequence[Any], out: Tensor) -> int:
    """The axis of a slice or concatenation, counted from the front; torch leaves out the argument if it is 0."""
    return int(args[1] if len(args) > 1 else 0) % max(1, out.dim())


def rows(tensor: Tensor) -> int:
    """Number of runs of the last axis."""
    return tensor.numel() // max(1, tensor.shape[-1]) if tensor.dim() else 1
