"""How the weights of a saved ML Program are stored, read back from its operations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from snapgen_deploy.export.base import Weight, element_bits, packed
from snapgen_deploy.export.coreml.compress import BLOCK, GROUP, LAYERS, LEAST_VALUES

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
    yield from plain.items()


def skipped(operations: Sequence[Any], weights: Mapping[str, Weight]) -> dict[str, str]:
    """Layers whose weight is a float constant although others are compressed, and the likely reason."""
    if not any(packed(w.kind) for w in weights.values()):
        return {}
    found = {}
    for op in (o for o in operations if o.type in LAYERS):
        names = [b.name for key in ("weight", "x", "y") if key in op.inputs for b in op.inputs[key].arguments]
        for name in names:
            if (weight := weights.get(name)) is not None and not packed(weight.kind) and AVERAGE not in name:
                found[name] = _reason(weight)
    return dict(sorted(found.items()))


def check_compressed(operations: Sequence[Any]) -> None:
    """Check that coremltools compressed at least one of the layers that are large enough.

    Raises:
        RuntimeError: if it compressed none of them.
    """
    weights = dict(stored(operations))
    if any(packed(w.kind) for w in weights.values()):
        return
    names = [b.name for op in operations if op.type in LAYERS for a in op.inputs.values() for b in a.arguments]
    large = sorted({n for n in names if n in weights and weights[n].values > LEAST_VALUES})
    if large:
        raise RuntimeError(f"coremltools compressed no weight of {len(large)} that it should take, first {large[0]}")


def dtype(kind: Any) -> str:
    """Name of the element type of a MIL value."""
    from coremltools.proto import MIL_pb2

    if kind.WhichOneof("type") != "tensorType":
        return str(kind.WhichOneof("type")).removesuffix("Type")
    return str(MIL_pb2.DataType.Name(kind.tensorType.dataType)).lower()


def _reason(weight: Weight) -> str:
    if weight.values <= LEAST_VALUES:
        return f"{weight.kind}: {weight.values} values, the quantiser takes more than {LEAST_VALUES}"
    shape = "x".join(map(str, weight.shape))
    return f"{weight.kind}: {shape} may not divide into groups of {GROUP} outputs or blocks of {BLOCK} inputs"


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
