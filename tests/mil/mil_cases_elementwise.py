"""Cases for arithmetic, comparison, logic, casts, activations and quantised activations; numpy and scipy are the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special

from tests.mil.mil_harness import Case, mb

_RNG = np.random.default_rng(11)


def real(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    return _RNG.uniform(low, high, shape).astype(np.float32)


def whole(*shape: int, low: int = -9, high: int = 10) -> np.ndarray:
    return _RNG.integers(low, high, shape).astype(np.int32)


def _unary(name: str, oracle: Callable[[np.ndarray], Any], low: float = -2.0, high: float = 2.0) -> Case:
    return Case(name, {"x": real(2, 3, 5, low=low, high=high)}, lambda x: getattr(mb, name)(x=x), lambda x: oracle(x))


_UNARY: dict[str, tuple[Any, ...]] = {
    "abs": (np.abs,),
    "acos": (np.arccos, -1, 1),
    "asin": (np.arcsin, -1, 1),
    "atan": (np.arctan,),
    "atanh": (np.arctanh, -0.9, 0.9),
    "ceil": (np.ceil,),
    "cos": (np.cos,),
    "cosh": (np.cosh,),
    "erf": (scipy.special.erf,),
    "exp": (np.exp,),
    "exp2": (np.exp2,),
    "floor": (np.floor,),
    "sign": (np.sign,),
    "sin": (np.sin,),
    "sinh": (np.sinh,),
    "sqrt": (np.sqrt, 0, 4),
    "square": (np.square,),
    "tan": (np.tan, -1.2, 1.2),
    "tanh": (np.tanh,),
    "relu": (lambda x: np.maximum(x, 0),),
    "relu6": (lambda x: np.clip(x, 0, 6), -4, 9),
    "sigmoid": (scipy.special.expit, -12, 12),
    "silu": (lambda x: x * scipy.special.expit(x), -12, 12),
    "softplus": (lambda x: np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0), -30, 30),
    "softsign": (lambda x: x / (1 + np.abs(x)),),
}

_BINARY: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "real_div": np.divide,
    "floor_div": np.floor_divide,
    "mod": np.mod,
    "maximum": np.maximum,
    "minimum": np.minimum,
}
_COMPARISON: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "equal": np.equal,
    "not_equal": np.not_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
}
_LOGIC: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
}


def _nonzero(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 1, x + np.where(x < 0, -1, 1), x).astype(x.dtype)


def _binary_cases() -> list[Case]:
    cases = []
    for name, oracle in _BINARY.items():

        def build(x: Any, y: Any, name: str = name) -> Any:
            return getattr(mb, name)(x=x, y=y)

        # Broadcasting with ranks that differ, then a scalar constant; remainders and quotients of negative numbers.
        divisor = _nonzero(real(3, 1, high=5.0, low=-5.0))
        cases.append(
            Case(
                f"{name}__broadcast", {"x": real(2, 3, 4, low=-9, high=9), "y": divisor}, build, lambda x, y, o=oracle: o(x, y)
            )
        )
        if name != "real_div":
            ints = {"x": whole(2, 3, 4), "y": _nonzero(whole(1, 3, 1))}
            cases.append(Case(f"{name}__int", ints, build, lambda x, y, o=oracle: o(x, y).astype(np.int32)))
    cases.append(
        Case("mul__constant", {"x": real(2, 3)}, lambda x: mb.mul(x=x, y=np.float32(0.5)), lambda x: x * np.float32(0.5))
    )
    cases.append(Case("pow", {"x": real(2, 3, low=0.2), "y": real(3)}, lambda x, y: mb.pow(x=x, y=y), lambda x, y: x**y))
    cases.append(Case("pow__integer_exponent", {"x": real(5)}, lambda x: mb.pow(x=x, y=np.float32(3)), lambda x: x**3))
    for name, oracle in _COMPARISON.items():

        def compare(x: Any, y: Any, name: str = name) -> Any:
            return getattr(mb, name)(x=x, y=y)

        small = {"x": whole(4, 5, low=0, high=3), "y": whole(5, low=0, high=3)}
        cases.append(Case(name, small, compare, lambda x, y, o=oracle: o(x, y).astype(np.int32)))
    for name, oracle in _LOGIC.items():

        def combine(x: Any, y: Any, name: str = name) -> Any:
            return getattr(mb, name)(x=mb.cast(x=x, dtype="bool"), y=mb.cast(x=y, dtype="bool"))

        small = {"x": whole(4, 5, low=0, high=2), "y": whole(4, 1, low=0, high=2)}
        cases.append(Case(name, small, combine, lambda x, y, o=oracle: o(x, y).astype(np.int32)))
    return cases


def _gelu(x: np.ndarray, mode: str) -> np.ndarray:
    if mode == "EXACT":
        return 0.5 * x * (1 + scipy.special.erf(x / np.sqrt(2)))
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x * scipy.special.expit(1.702 * x)


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


_HALVES = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 1.4, -1.6], np.float32)
_CASTABLE = np.array([-300.7, -1.9, -0.2, 0.0, 0.6, 1.9, 127.9, 300.4], np.float32)
_ALPHA = np.array([0.1, -0.3, 2.0], np.float32)
_BETA = np.array([0.5, 1.5, -1.0], np.float32)

_SINGLE = [
    Case("round", {"x": _HALVES}, lambda x: mb.round(x=x), lambda x: np.round(x)),
    Case(
        "logical_not",
        {"x": whole(6, low=0, high=2)},
        lambda x: mb.logical_not(x=mb.cast(x=x, dtype="bool")),
        lambda x: (x == 0).astype(np.int32),
    ),
    Case("clip", {"x": real(4, 5)}, lambda x: mb.clip(x=x, alpha=-0.5, beta=1.0), lambda x: np.clip(x, -0.5, 1)),
    Case("inverse", {"x": real(5, low=0.5)}, lambda x: mb.inverse(x=x, epsilon=1e-2), lambda x: 1 / (x + 1e-2)),
    Case("log", {"x": real(5, low=0.0)}, lambda x: mb.log(x=x, epsilon=1e-3), lambda x: np.log(np.maximum(x, 0) + 1e-3)),
    Case("rsqrt", {"x": real(5, low=0.0)}, lambda x: mb.rsqrt(x=x, epsilon=1e-2), lambda x: 1 / np.sqrt(x + 1e-2)),
    Case("threshold", {"x": real(9)}, lambda x: mb.threshold(x=x, alpha=0.25), lambda x: np.maximum(x, 0.25)),
    Case(
        "select",
        {"c": whole(4, 1, low=0, high=2), "a": real(4, 5), "b": real(5)},
        lambda c, a, b: mb.select(cond=mb.cast(x=c, dtype="bool"), a=a, b=b),
        lambda c, a, b: np.where(c != 0, a, b),
    ),
    Case("cast__int32", {"x": _CASTABLE}, lambda x: mb.cast(x=x, dtype="int32"), lambda x: x.astype(np.int32)),
    Case("cast__bool", {"x": _CASTABLE}, lambda x: mb.cast(x=x, dtype="bool"), lambda x: (x != 0).astype(np.int32)),
    Case("cast__fp32", {"x": whole(7)}, lambda x: mb.cast(x=x, dtype="fp32"), lambda x: x.astype(np.float32)),
    *(
        Case(
            f"cast__{d}",
            {"x": np.array([-300, -1, 0, 1, 127, 128, 255, 256, 70000], np.int32)},
            lambda x, d=d: mb.cast(x=x, dtype=d),
            lambda x, d=d: x.astype(d).astype(np.int32),
            ios=17,
        )
        for d in ("int8", "uint8", "int16", "uint16")
    ),
    *(
        Case(
            f"gelu__{m.lower()}",
            {"x": real(4, 5, low=-4, high=4)},
            lambda x, m=m: mb.gelu(x=x, mode=m),
            lambda x, m=m: _gelu(x, m),
        )
        for m in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")
    ),
    Case(
        "clamped_relu",
        {"x": real(9, low=-5, high=5)},
        lambda x: mb.clamped_relu(x=x, alpha=0.2, beta=3.0),
        lambda x: np.minimum(np.maximum(x, 0), 3) + np.minimum(np.minimum(x, 0) * 0.2, 3),
    ),
    Case("elu", {"x": real(9)}, lambda x: mb.elu(x=x, alpha=0.7), lambda x: np.where(x > 0, x, 0.7 * np.expm1(x))),
    Case(
        "leaky_relu", {"x": real(9)}, lambda x: mb.leaky_relu(x=x, alpha=0.1), lambda x: np.where(x > 0, x, np.float32(0.1) * x)
    ),
    Case("linear_activation", {"x": real(9)}, lambda x: mb.linear_activation(x=x, alpha=0.3, beta=-1.0), lambda x: 0.3 * x - 1),
    Case(
        "prelu",
        {"x": real(2, 3, 4, 2)},
        lambda x: mb.prelu(x=x, alpha=_ALPHA),
        lambda x: np.where(x > 0, x, _ALPHA[:, None, None] * x),
    ),
    Case("scaled_tanh", {"x": real(9)}, lambda x: mb.scaled_tanh(x=x, alpha=0.7, beta=1.3), lambda x: 0.7 * np.tanh(1.3 * x)),
    Case(
        "sigmoid_hard",
        {"x": real(9, low=-5, high=5)},
        lambda x: mb.sigmoid_hard(x=x, alpha=0.3, beta=0.4),
        lambda x: np.clip(0.3 * x + 0.4, 0, 1),
    ),
    Case(
        "softplus_parametric",
        {"x": real(2, 3, 4)},
        lambda x: mb.softplus_parametric(x=x, alpha=_ALPHA, beta=_BETA),
        lambda x: _ALPHA[:, None] * np.log1p(np.exp(_BETA[:, None] * x)),
    ),
    Case(
        "thresholded_relu",
        {"x": real(9)},
        lambda x: mb.thresholded_relu(x=x, alpha=0.5),
        lambda x: np.where(x >= 0.5, x, np.float32(0)),
    ),
    *(
        Case(
            f"softmax__{i}",
            {"x": real(2, 3, 4, low=-9, high=9)},
            lambda x, a=a: mb.softmax(x=x, axis=a),
            lambda x, a=a: _softmax(x, a),
        )
        for i, a in enumerate((-1, 1, -3))
    ),
    Case(
        "quantize__scalar",
        {"x": real(4, 5, low=-60, high=60)},
        lambda x: mb.quantize(input=x, scale=np.float32(0.25), zero_point=np.int8(-7), output_dtype="int8"),
        lambda x: np.clip(np.round(x / np.float32(0.25)) - 7, -128, 127).astype(np.int32),
        ios=17,
    ),
    Case(
        "quantize__axis",
        {"x": real(3, 5, low=-60, high=60)},
        lambda x: mb.quantize(
            input=x, scale=_BETA**2 + 0.25, zero_point=np.array([3, 100, 0], np.uint8), axis=-2, output_dtype="uint8"
        ),
        lambda x: np.clip(np.round(x / (_BETA**2 + 0.25)[:, None]) + [[3], [100], [0]], 0, 255).astype(np.int32),
        ios=17,
    ),
    Case(
        "dequantize",
        {"x": whole(2, 3, low=-100, high=100)},
        lambda x: mb.dequantize(
            input=mb.cast(x=x, dtype="int8"), scale=_ALPHA, zero_point=np.array([1, -2, 3], np.int8), axis=1
        ),
        lambda x: (x - [1, -2, 3]) * _ALPHA,
        ios=17,
    ),
]

ELEMENTWISE: list[Case] = [*(_unary(n, *rest) for n, rest in _UNARY.items()), *_binary_cases(), *_SINGLE]
