"""MIL value types, and how each is held while a program runs.

Every floating type is held as float32: in `fp32` mode by intent, in `device` mode because a float32 tensor that was rounded
to half precision holds the same numbers, and the next operation accumulates in float32 anyway. Unsigned integers that torch
cannot compute with are held in the next wider signed type; sub-byte integers in a byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import DTypeLike

_Kind = Literal["tensor", "state", "list", "other"]


@dataclass(frozen=True)
class DType:
    """One scalar type of MIL: bits as stored, numpy type as stored in whole bytes, torch type while running."""

    name: str
    bits: int
    stored: DTypeLike
    held: torch.dtype
    signed: bool = True

    @property
    def floating(self) -> bool:
        """Whether values are real numbers."""
        return self.held == torch.float32


_DTYPES = (
    DType("fp16", 16, np.float16, torch.float32),
    DType("fp32", 32, np.float32, torch.float32),
    DType("fp64", 64, np.float64, torch.float32),
    DType("int4", 4, np.int8, torch.int8),
    DType("int8", 8, np.int8, torch.int8),
    DType("int16", 16, np.int16, torch.int16),
    DType("int32", 32, np.int32, torch.int32),
    DType("int64", 64, np.int64, torch.int64),
    DType("uint1", 1, np.uint8, torch.uint8, signed=False),
    DType("uint2", 2, np.uint8, torch.uint8, signed=False),
    DType("uint3", 3, np.uint8, torch.uint8, signed=False),
    DType("uint4", 4, np.uint8, torch.uint8, signed=False),
    DType("uint6", 6, np.uint8, torch.uint8, signed=False),
    DType("uint8", 8, np.uint8, torch.uint8, signed=False),
    DType("uint16", 16, np.uint16, torch.int32, signed=False),
    DType("uint32", 32, np.uint32, torch.int64, signed=False),
    DType("uint64", 64, np.uint64, torch.int64, signed=False),
    DType("bool", 8, np.bool_, torch.bool, signed=False),
    DType("string", 0, np.str_, torch.uint8),
)
DTYPES: dict[str, DType] = {d.name: d for d in _DTYPES}
"""By MIL name."""

_ALIASES = {"float16": "fp16", "float32": "fp32", "float64": "fp64", "float": "fp32", "double": "fp64", "int": "int32"}


def dtype_named(name: str) -> DType | None:
    """The type called `name` in a program's text ("fp16", "FLOAT16" and "float16" are one), or None."""
    lowered = name.lower()
    return DTYPES.get(_ALIASES.get(lowered, lowered))


@dataclass(frozen=True)
class ValueType:
    """Type of one value: None in `shape` is a size known only at run time; `shape` None is an unknown rank."""

    dtype: DType
    shape: tuple[int | None, ...] | None
    kind: _Kind = "tensor"

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of `shape` is of this type."""
        if self.shape is None or self.shape == shape:
            return True
        return len(self.shape) == len(shape) and all(a is None or a == b for a, b in zip(self.shape, shape, strict=True))

    def __str__(self) -> str:
        sizes = "..." if self.shape is None else ", ".join("?" if n is None else str(n) for n in self.shape)
        return f"{self.dtype.name}[{sizes}]"


def to_held(array: np.ndarray, dtype: DType) -> torch.Tensor:
    """A numpy array of MIL type `dtype` as the torch tensor that stands for it (shares memory where types agree)."""
    if array.dtype == np.uint16 or array.dtype == np.uint32:
        array = array.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape)).to(dtype.held)


def from_held(tensor: torch.Tensor, dtype: DType) -> np.ndarray:
    """The reverse of `to_held`: values in the numpy type of `dtype`."""
    array: np.ndarray = tensor.detach().contiguous().numpy()
    return array.astype(dtype.stored, copy=False)
