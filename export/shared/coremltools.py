"""coremltools 9.0 with less time and memory, and the same result.

Its import loads scikit-learn only to see whether sklearn's models can be converted: seconds and 90 MB that are not needed here.

After each of its 90 passes the whole program is checked for consistency, which takes a fifth of a large conversion. That is
skipped, unless the converter also asks for scopes, as around its backend's passes and after each removal of dead code.

After each of them, every block is also searched for what depends on compressed weights; that is skipped until there are some.

`FP16ComputePrecision.fp16_overflow` checks for every operation whether one of its fp32 constants is too large for fp16, and
builds three 64-bit index arrays as long as the constant to leave out infinities: 8 times the bytes of the largest weight. Here
the same result is computed in chunks.

The pass that casts to fp16 leaves every fp32 constant beside its cast until a later one folds the two. Here weights are folded
as soon as their operation is cast, with the name and place that the later pass would give them: if nothing else holds the
network, its fp32 weights are freed as the fp16 ones are made.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import util
from types import ModuleType
from typing import Any

import numpy as np

from snapgen_deploy.export.shared.replaced import replaced

LARGEST_FP16 = 65504.0
INFINITE = 1e38  # as in coremltools: a value from here on stands for infinity, which fp16 can represent
CHUNK_ELEMENTS = 1 << 20  # elements
WEIGHT = 4096  # elements; smaller constants are left to coremltools


def overflows(values: np.ndarray) -> bool:
    """Whether a finite number is beyond the range of fp16."""
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
    """Replace a constant and its cast by the cast value, if nothing else reads the constant."""
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
        for gone in (var, constant.val, old):  # the pass keeps references to operations that it has seen
            gone._sym_val = None


def has_compressed(block: Any) -> bool:
    """Whether a MIL block, or one inside it, has an operation that stands for a compressed constant."""
    return any(op.op_type.startswith("constexpr_") or any(map(has_compressed, op.blocks)) for op in block.operations)


def load() -> Any:
    """The module coremltools, imported without scikit-learn; others may import that afterwards."""
    hidden = not {"coremltools", "sklearn"} & set(sys.modules)
    if hidden:
        sys.modules["sklearn"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        import coremltools
    finally:
        if hidden:
            del sys.modules["sklearn"]
    if (proto := sys.modules.get("coremltools.proto")) is not None:  # loaded before the package, see `messages`
        coremltools.proto = proto
    return coremltools


_ALONE = threading.Lock()


def messages() -> Any:
    """The package `coremltools.proto`, its protobuf messages, without all converters that coremltools imports first.

    Those bring torch's exporter and ExecuTorch's: half of the time of a picture that a package draws here.
    """
    with _ALONE:
        if "coremltools" in sys.modules or (found := util.find_spec("coremltools")) is None:
            return importlib.import_module("coremltools.proto")
        stand_in = ModuleType("coremltools")
        stand_in.__path__ = list(found.submodule_search_locations or ())
        sys.modules["coremltools"] = stand_in
        try:
            return importlib.import_module("coremltools.proto")
        finally:
            del sys.modules["coremltools"]


@contextlib.contextmanager
def thrifty(release: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within the block, coremltools converts as described in this module's docstring.

    `release` is called before weights are cast to fp16; it may free torch's copy of them.
    """
    load()
    from coremltools.converters.mil.mil import Block, Program
    from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision as Half

    validate, apply, transform = Program.validate, Half.apply, Half.transform_op
    propagate, compressed = Block._propagate_nonreplaceable_vars, False

    def seldom(program: Any, check_essential_scope: bool = False) -> None:
        if check_essential_scope:
            validate(program, check_essential_scope)

    def depending(block: Any) -> None:
        nonlocal compressed
        if compressed := compressed or has_compressed(block):  # from then on, what depended on some may be left
            propagate(block)

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
            (Block, "_propagate_nonreplaceable_vars", depending),
            (Half, "fp16_overflow", staticmethod(has_overflowing_constant)),
            (Half, "apply", alone),
            (Half, "transform_op", cast),
        ):
            put_back.enter_context(replaced(owner, name, ours))
        yield
