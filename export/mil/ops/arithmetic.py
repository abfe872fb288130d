"""Elementwise arithmetic, comparison, logic, casts (coremltools: iOS15 and iOS17 elementwise_unary.py, elementwise_binary.py).

Binary operations broadcast as numpy does; integer division and remainder round towards minus infinity, as Python's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from snapgen_deploy.export.mil.ops.registry import Implementation, Warn, elementwise, op
from snapgen_deploy.export.mil.saved.types import DTYPES, DType, dtype_named

elementwise(
    {
        "abs": torch.abs,
        "acos": torch.acos,
        "asin": torch.asin,
        "atan": torch.atan,
        "atanh": torch.atanh,
        "ceil": torch.ceil,
        "cos": torch.cos,
        "cosh": torch.cosh,
        "erf": torch.erf,
        "exp": torch.exp,
        "exp2": torch.exp2,
        "floor": torch.floor,
        "logical_not": torch.logical_not,
        "round": torch.round,  # halves to even, as the definition's numpy.round
        "sign": torch.sign,
        "sin": torch.sin,
        "sinh": torch.sinh,
        "sqrt": torch.sqrt,
        "square": torch.square,
        "tan": torch.tan,
        "tanh": torch.tanh,
    }
)


def _binary(functions: Mapping[str, Callable[[Tensor, Tensor], Tensor]]) -> None:
    for name, function in functions.items():
        op(name)(_two(function))


def _two(function: Callable[[Tensor, Tensor], Tensor]) -> Implementation:
    def run(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)

    return run


def _divide(x: Tensor, y: Tensor) -> Tensor:
    """Real division; of integers, the whole part (the definition's result has the type of its inputs)."""
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _power(x: Tensor, y: Tensor) -> Tensor:
    return torch.pow(x, y)


_binary(
    {
        "add": torch.add,
        "sub": torch.sub,
        "mul": torch.mul,
        "real_div": _divide,
        "floor_div": torch.floor_divide,
        "mod": torch.remainder,
        "pow": _power,
        "maximum": torch.maximum,
        "minimum": torch.minimum,
        "equal": torch.eq,
        "not_equal": torch.ne,
        "greater": torch.gt,
        "greater_equal": torch.ge,
        "less": torch.lt,
        "less_equal": torch.le,
        "logical_and": torch.logical_and,
        "logical_or": torch.logical_or,
        "logical_xor": torch.logical_xor,
    }
)


@op("clip")
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """x kept within alpha and beta."""
    return x.clamp(alpha, beta)


@op("inverse")
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """1 / (x + epsilon)."""
    return torch.reciprocal(x + epsilon)


@op("log")
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """log(x + epsilon)."""
    return torch.log(x + epsilon)


@op("rsqrt")
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """1 / sqrt(x + epsilon)."""
    return torch.rsqrt(x + epsilon)


@op("threshold")
def threshold(x: Tensor, alpha: float) -> Tensor:
    """max(x, alpha)."""
    return x.clamp(min=alpha)


@op("select")
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where cond, else b; all three broadcast."""
    return torch.where(cond, a, b)


@op("cast")
def cast(x: Tensor, dtype: str, warn: Warn) -> Tensor:
    """x as `dtype`: towards zero to integers, modulo their range where they are narrower; nonzero is true."""
    wanted = dtype_named(dtype)
    if wanted is None or wanted.name == "string":
        raise ValueError(f"cast to {dtype!r} is not supported; known are {', '.join(DTYPES)}")
    if beyond := _beyond(x, wanted):
        warn(beyond)
    return convert(x, wanted)


def convert(x: Tensor, dtype: DType) -> Tensor:
    """`x` as values of `dtype`, in the type in which those are held."""
    if dtype.name == "bool":
        return x != 0
    if dtype.floating:
        return x.to(torch.float32)
    if x.is_floating_point():
        x = x.to(torch.int64)
    if not dtype.signed and dtype.bits >= 8:
        x = x.to(torch.int64) & ((1 << min(dtype.bits, 62)) - 1)  # held in a wider type: wrap by hand
    return x.to(dtype.held)


def _beyond(x: Tensor, dtype: DType) -> str:
    """What is to be said where the integers of `dtype` do not hold all of x; nothing where they do."""
    if dtype.floating or dtype.name == "bool" or x.dtype == torch.bool or not x.numel():
        return ""
    least, most = (-(1 << (dtype.bits - 1)), (1 << (dtype.bits - 1)) - 1) if dtype.signed else (0, (1 << dtype.bits) - 1)
    low, high = (v.item() for v in torch.aminmax(x))
    if least - 1 < low and high < most + 1:  # never true of NaN
        return ""
    worst = high if high >= most + 1 else low
    became = convert(torch.tensor(worst, dtype=x.dtype), dtype).item()
    return f"values {low} ... {high} do not all fit {dtype.name} ({least} ... {most}) and wrap: {worst} became {became}"
