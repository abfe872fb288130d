"""coremltools 9.0 with less time and memory, and the same result.

Its import loads scikit-learn only to see whether sklearn's models can be converted: seconds and 90 MB, for nothing here.

After each of its 90 passes the whole program is checked for consistency, a fifth of the time of a large conversion; where the
converter also asks for scopes, as before and after its backend's passes and after each removal of dead code, it still is.

`FP16ComputePrecision.fp16_overflow` asks of every operation whether one of its fp32 constants is too large for fp16, and builds
three 64-bit index arrays of the constant's size to leave out infinities: 8 times the bytes of the largest weight. The answer is
the same here, found a block at a time.

The pass that casts to fp16 leaves every fp32 constant beside its cast until a later one folds the two. Weights are folded here
as soon as their operation is cast, under the name and at the place that the later pass would give them: where nobody else holds
the network, its fp32 goes as its fp16 comes.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from snapgen_deploy.export.shared.replaced import replaced

LARGEST_FP16 = 65504.0
INFINITE = 1e38  # as in coremltools: from here on a value stands for infinity, which fp16 has
CHUNK_ELEMENTS = 1 << 20  # elements
WEIGHT = 4096  # elements; a constant of fewer is left to coremltools


def overflows(values: np.ndarray) -> bool:
    """Whether a number that does not stand for infinity is beyond fp16."""
    flat = values.reshape(-1)
    blocks = (np.abs(flat[start : start + CHUNK_ELEMENTS]) for start in range(0, flat.size, CHUNK_ELEMENTS))
    return any(bool(((block > LARGEST_FP16) & (block < INFINITE)).any()) for block in blocks)


def constants(operation: Any) -> Iterator[Any]:
    """Inputs of the MIL operation that are fp32 constants, as its variables."""
    for given in operation.inputs.values():
        for var in given if isinstance(given, list | tuple) else [given]:
            if var.op is not None and var.op.op_type == "const" and var.is_tensor_or_scalar_of(dtype="fp32"):
                yield var


def has_overflowing_constant(operation: Any) -> bool:
    """Whether an input of the MIL operation is an fp32 constant that overflows."""
    return any(overflows(np.asarray(var.op.val.val)) for var in constants(operation))


def fold(var: Any) -> None:
    """Put the cast value of a constant in the place of the constant and its cast, where nothing else reads the constant."""
    from coremltools.converters.mil.mil import Builder

    if len(var.child_ops) != 1 or var.child_ops[0].op_type != "cast" or var.val.size < WEIGHT:
        return
    constant, cast = var.op, var.child_ops[0]
    (old,), block = cast.outputs, cast.enclosing_block
    if var in block.outputs or old in block.outputs or not old.can_be_folded_to_const():
        return
    new = Builder.const(val=old.val, before_op=cast, name=old.name)  # in the block that the pass has entered
    if block.try_replace_uses_of_var_after_op(anchor_op=cast, old_var=old, new_var=new):
        block.remove_ops([cast, constant])
        for gone in (var, constant.val, old):  # the pass goes on holding operations that it has seen
            gone._sym_val = None


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
def thrifty(release: Callable[[], None] = lambda: None) -> Iterator[None]:
    """While this lasts, coremltools converts as the module's text says.

    `release` is called before weights are cast to fp16, to end torch's own hold on them where nobody needs that any more.
    """
    load()
    from coremltools.converters.mil.mil import Program
    from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision as Half

    validate, apply, transform = Program.validate, Half.apply, Half.transform_op

    def seldom(program: Any, check_essential_scope: bool = False) -> None:
        if check_essential_scope:
            validate(program, check_essential_scope)

    def alone(pass_: Any, program: Any) -> None:
        release()
        gc.collect()  # of the programs that led to this one
        apply(pass_, program)

    def cast(pass_: Any, operation: Any) -> None:
        weights = list(constants(operation))
        transform(pass_, operation)
        for var in weights:
            fold(var)

    with contextlib.ExitStack() as put_back:
        for owner, name, ours in (
            (Program, "validate", seldom),
            (Half, "fp16_overflow", staticmethod(has_overflowing_constant)),
            (Half, "apply", alone),
            (Half, "transform_op", cast),
        ):
            put_back.enter_context(replaced(owner, name, ours))
        yield
