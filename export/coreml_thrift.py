"""coremltools 9.0 with less time and memory, and the same result.

Its import loads scikit-learn only to see whether sklearn's models can be converted: seconds and 90 MB, for nothing here.

After each of its 90 passes the whole program is checked for consistency, a fifth of the time of a large conversion; where the
converter also asks for scopes, as before and after its backend's passes and after each removal of dead code, it still is.

`FP16ComputePrecision.fp16_overflow` asks of every operation whether one of its fp32 constants is too large for fp16, and builds
three 64-bit index arrays of the constant's size to leave out infinities: 8 times the bytes of the largest weight. The answer is
the same here, found a block at a time.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

LARGEST_FP16 = 65504.0
INFINITE = 1e38  # as in coremltools: from here on a value stands for infinity, which fp16 has
BLOCK = 1 << 20  # elements


def overflows(values: np.ndarray) -> bool:
    """Whether a number that does not stand for infinity is beyond fp16."""
    flat = values.reshape(-1)
    blocks = (np.abs(flat[start : start + BLOCK]) for start in range(0, flat.size, BLOCK))
    return any(bool(((block > LARGEST_FP16) & (block < INFINITE)).any()) for block in blocks)


def has_overflowing_constant(operation: Any) -> bool:
    """Whether an input of the MIL operation is an fp32 constant that overflows."""
    for given in operation.inputs.values():
        for var in given if isinstance(given, list | tuple) else [given]:
            constant = var.op is not None and var.op.op_type == "const" and var.is_tensor_or_scalar_of(dtype="fp32")
            if constant and overflows(np.asarray(var.op.val.val)):
                return True
    return False


def load() -> Any:
    """The module coremltools; its first import is without scikit-learn, which others may import afterwards."""
    hidden = not {"coremltools", "sklearn"} & set(sys.modules)
    if hidden:
        sys.modules["sklearn"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        import coremltools
    finally:
        if hidden:
            del sys.modules["sklearn"]
    return coremltools


@contextlib.contextmanager
def thrifty() -> Iterator[None]:
    """While this lasts, coremltools asks `has_overflowing_constant`, and checks programs only where it asks for scopes, too."""
    load()
    from coremltools.converters.mil.mil import Program
    from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision

    search = FP16ComputePrecision.__dict__["fp16_overflow"]  # a static method, and put back as one
    validate = Program.validate

    def seldom(program: Any, check_essential_scope: bool = False) -> None:
        if check_essential_scope:
            validate(program, check_essential_scope)

    FP16ComputePrecision.fp16_overflow = staticmethod(has_overflowing_constant)
    Program.validate = seldom
    try:
        yield
    finally:
        FP16ComputePrecision.fp16_overflow, Program.validate = search, validate
