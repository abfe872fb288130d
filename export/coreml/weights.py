"""How the weights of a saved ML Program are stored, read back from its operations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from snapgen_deploy.export.base import Weight, element_bits, packed
from snapgen_deploy.export.coreml.compress import LAYERS, Scheme, refusal, scheme_of
from snapgen_deploy.export.shared.coremltools import messages
from snapgen_deploy.export.shared.weights_given import SCALES

AVERAGE = "norm_average"  # in the names of constants that compute the mean of a norm: they are not layers


def stored(operations: Sequence[Any]) -> Iterator[tuple[str, Weight]]:
    """(name, how it is stored) of every constant in the weight file; data and scales of a compressed one count as one."""
    plain = {}
    for op in operations:
        if op.type == "const" and op.attributes["val"].WhichOneof("value") == "blobFileValue":
            kind, shape = dtype(op.outputs[0].type), shape_of(op.outputs[0].type)
            plain[op.outputs[0].name] = Weight(kind, math.prod(shape), math.prod(shape) * element_bits(kind), shape)
    for op in (o for o in operations if o.type.startswith("constexpr_")):
        parts: dict[str, Weight] = {}
        for name, argument in op.inputs.items():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "value":  # iOS 18: data inside the operation
                    parts[name] = _of_type(binding.value.type)
                elif binding.name in plain:
                    parts[name] = plain.pop(binding.name)
        for name, value in op.attributes.items():  # iOS 16
            if value.WhichOneof("value") == "blobFileValue":
                parts[name] = _of_type(value.type)
        shape = shape_of(op.outputs[0].type)
        bits = sum(part.bits for part in parts.values())
        yield op.outputs[0].name, Weight(_kind(op.type, parts, shape), math.prod(shape), bits, shape)
    for name in [n for n in plain if n + SCALES in plain and plain[n].kind == "int8"]:  # a table, see `coreml.by_tensor`
        bits = plain[name].bits + plain.pop(name + SCALES).bits
        plain[name] = Weight("int8 per channel", plain[name].values, bits, plain[name].shape)
    yield from plain.items()


def skipped(operations: Sequence[Any], weights: Mapping[str, Weight], asked: Scheme | None) -> dict[str, str]:
    """Layers that a quantiser left in floats, and why, where it shows.

    `asked` is how weights were to be stored in a program that has none stored so; None where no quantiser was asked.
    """
    how = scheme_of(w.kind for w in weights.values()) or asked
    if how is None and not any(packed(w.kind) for w in weights.values()):
        return {}
    found = {}
    for name, axes in _layers(operations, weights):
        weight = weights[name]
        if not packed(weight.kind) and AVERAGE not in name:
            why = refusal(how, weight.shape, *axes) if how is not None else ""
            found[name] = f"{weight.kind}: {why or 'left by the quantiser'}"
    return dict(sorted(found.items()))


def check_compressed(operations: Sequence[Any], how: Scheme) -> bool:
    """Whether any weight is compressed.

    Raises:
        RuntimeError: if none is, although there are layers that coremltools should take.
    """
    weights = dict(stored(operations))
    if any(packed(w.kind) for w in weights.values()):
        return True
    missed = sorted({name for name, axes in _layers(operations, weights) if not refusal(how, weights[name].shape, *axes)})
    if missed:
        raise RuntimeError(f"coremltools compressed no weight of {len(missed)} that it should take, first {missed[0]}")
    return False


def _layers(operations: Sequence[Any], weights: Mapping[str, Weight]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names of the layers' weights, with the axes of their outputs and inputs, as coremltools tells them."""
    flags = {op.outputs[0].name: op.attributes["val"].immediateValue.tensor.bools for op in operations if op.type == "const"}
    for op in (o for o in operations if o.type in LAYERS):
        for key in (k for k in ("weight", "x", "y") if k in op.inputs):  # asking a protobuf map for a key puts it in
            yield from ((b.name, _axes(op, key, flags)) for b in op.inputs[key].arguments if b.name in weights)


def _axes(op: Any, key: str, flags: Mapping[str, Any]) -> tuple[int, int]:
    """Axes of the outputs and inputs of an operation's weight, the argument `key`."""
    if op.type != "matmul":
        return (1, 0) if op.type == "conv_transpose" else (0, 1)
    flag = f"transpose_{key}"
    bound = op.inputs[flag].arguments if flag in op.inputs else ()
    stated = (b.value.immediateValue.tensor.bools if b.WhichOneof("binding") == "value" else flags[b.name] for b in bound)
    transposed = any(any(values.values) for values in stated)
    return (-1, -2) if (key == "y") != transposed else (-2, -1)


def dtype(kind: Any) -> str:
    """Name of the element type of a MIL value."""
    if kind.WhichOneof("type") != "tensorType":
        return str(kind.WhichOneof("type")).removesuffix("Type")
    return str(messages().MIL_pb2.DataType.Name(kind.tensorType.dataType)).lower()


def _kind(operation: str, parts: Mapping[str, Weight], shape: tuple[int, ...]) -> str:
    """E.g. `palette4 per 16 channels`; the operation's name for forms that we never write."""
    if operation == "constexpr_lut_to_dense" and "lut" in parts:
        lut = parts["lut"].shape
        if len(lut) == 1:  # iOS 16: a palette for the whole weight
            return f"palette{round(math.log2(lut[0]))}"
        bits, groups = round(math.log2(lut[-2])), lut[:-2]
        return f"palette{bits}{per(shape, groups, 'channels')}"
    if operation == "constexpr_blockwise_shift_scale" and {"data", "scale"} <= set(parts):
        data = parts["data"]
        return f"{data.kind}{per(data.shape, parts['scale'].shape, 'values')}"
    if operation == "constexpr_affine_dequantize" and "quantized_data" in parts:
        return f"{parts['quantized_data'].kind}{' per channel' if len(parts.get('scale', Weight('', 0, 0)).shape) else ''}"
    return f"{operation}({', '.join(sorted({p.kind for p in parts.values()}))})"


def per(shape: tuple[int, ...], groups: tuple[int, ...], what: str) -> str:
    """How many values along an axis share a palette or scale; "" if the whole weight does.

    >>> per((64, 32), (4, 1), "channels")
    ' per 16 channels'
    """
    lengths = [length // count for length, count in zip(shape, groups, strict=True) if count > 1]
    shared = [length for length in lengths if length > 1]
    if not lengths:
        return ""
    return f" per {shared[0]} {what}" if shared else " per channel"


def _of_type(kind: Any) -> Weight:
    name, shape = dtype(kind), shape_of(kind)
    return Weight(name, math.prod(shape), math.prod(shape) * element_bits(name), shape)


def shape_of(kind: Any) -> tuple[int, ...]:
    """The shape of a MIL value; () if it is not a tensor."""
    if kind.WhichOneof("type") != "tensorType":
        return ()
    return tuple(int(d.constant.size) for d in kind.tensorType.dimensions)
