"""Puts stored weights in the place of a function's inputs (`export.shared.weights_given`), one after the other.

Matrices become what coremltools' linear quantiser makes of them: integers and a scale for every block of inputs. A runtime may
decode such a constant as a whole before it is used, which for a table of embeddings would be gigabytes for a few rows. So a
table is a plain constant of 8-bit integers: the lookup takes rows of it, and only these become floats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snapgen_deploy.export.coreml.compress import Exact, Linear, refusal
from snapgen_deploy.export.coreml.functions import SINGLE, blob_values
from snapgen_deploy.export.coreml.weight_file import WEIGHT_FILE, WeightWriter
from snapgen_deploy.export.shared.weights_given import SCALES, GivenWeight, in_rows

# Element types: number in a weight file (MILBlob/Blob/BlobDataType.hpp), name in MIL.proto.
_FP16, _INT8, _INT4 = (1, "FLOAT16"), (4, "INT8"), (8, "INT4")
_INTEGERS = {8: _INT8, 4: _INT4}  # by bits
_CAST_TO = "weights_given_dtype"  # name of the constant with the type that rows of a table become


def store_constants(spec: Any, given: Iterable[GivenWeight], how: Exact | Linear, folder: Path) -> None:
    """Replace the given inputs of a package's model message, in place, by weights. Its weight file lies in `folder`.

    Raises:
        RuntimeError: if a table is used otherwise than in a lookup.
    """
    function = spec.mlProgram.functions[SINGLE]
    block = function.block_specializations[function.opset]
    shapes = {value.name: tuple(int(d.constant.size) for d in value.type.tensorType.dimensions) for value in function.inputs}
    folder.mkdir(exist_ok=True)  # a graph whose other constants are small has none
    made, replaced = folder / "weight.bin.part", set[str]()
    with made.open("wb") as file:
        writer = WeightWriter(file)
        writer.move(blob_values(function), folder.parent)
        first: list[Any] = []
        for weight in given:
            replaced.add(weight.name)
            if weight.is_table:
                numbers, scales = in_rows(weight.read())
                first.append(_constant(weight.name, writer, numbers.numpy(), _INT8))
                first.append(_constant(weight.name + SCALES, writer, scales.half().numpy(), _FP16))
                replaced.add(weight.name + SCALES)
            else:
                first.append(_weight(weight, shapes[weight.name], how, writer))
        writer.finish()
    made.replace(folder / "weight.bin")
    tables = {weight.name for weight in given if weight.is_table}
    rest = list(_with_casts(block.operations, tables))
    with_first = type(block)(operations=[*([_text(_CAST_TO, "fp16")] if tables else []), *first, *rest])
    block.ClearField("operations")
    block.MergeFrom(with_first)
    for values in (function.inputs, spec.description.input):
        left = [value for value in values if value.name not in replaced]
        del values[:]
        values.extend(left)


def in_blocks(weight: Tensor, how: Linear) -> tuple[np.ndarray, np.ndarray]:
    """Integers of a weight (out, in, ...), one a byte, and fp16 scales (out, blocks), as coremltools' symmetric quantiser."""
    outputs, inputs = weight.shape[:2]
    blocks = weight.half().float().reshape(outputs, -1, how.block or inputs)  # (out, blocks, block)
    scale = blocks.abs().amax(2, keepdim=True) / (2 ** (how.bits - 1) - 1)
    integers = (blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)).round().to(torch.int8)
    return integers.reshape(weight.shape).numpy(), scale[..., 0].half().numpy()


def in_nibbles(integers: np.ndarray) -> np.ndarray:
    """4-bit integers, two a byte, the first in the lower half.

    >>> in_nibbles(np.array([1, -1, 3], np.int8)).tolist()
    [241, 3]
    """
    flat = integers.reshape(-1).view(np.uint8) & 0xF
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    packed: np.ndarray = flat[0::2] | flat[1::2] << 4
    return packed


def _weight(weight: GivenWeight, shape: tuple[int, ...], how: Exact | Linear, writer: WeightWriter) -> Any:
    """The operation that gives a weight of `shape` (out, in, ...)."""
    values = weight.read()
    if isinstance(how, Exact) or refusal(how, shape, 0, 1):
        return _constant(weight.name, writer, values.half().numpy().reshape(shape), _FP16)
    integers, scales = in_blocks(values, how)
    made = _operation("constexpr_blockwise_shift_scale", weight.name, shape, _FP16)
    packed = in_nibbles(integers) if how.bits < 8 else integers
    padding = (packed.size * 8 - integers.size * how.bits) if how.bits < 8 else 0
    blob = _blob(writer, packed, shape, _INTEGERS[how.bits], padding)
    made.inputs["data"].arguments.add().value.CopyFrom(blob)
    of_scales = (*scales.shape, *(1 for _ in shape[2:]))
    made.inputs["scale"].arguments.add().value.CopyFrom(_blob(writer, scales, of_scales, _FP16))
    return made


def _constant(name: str, writer: WeightWriter, array: np.ndarray, kind: tuple[int, str]) -> Any:
    made = _operation("const", name, array.shape, kind)
    made.attributes["val"].CopyFrom(_blob(writer, array, array.shape, kind))
    return made


def _operation(operation: str, name: str, shape: tuple[int, ...], kind: tuple[int, str]) -> Any:
    """An operation with one result of its own name."""
    from coremltools.proto import MIL_pb2

    made = MIL_pb2.Operation(type=operation)
    made.attributes["name"].CopyFrom(_string(name))
    made.outputs.add(name=name, type=_type(shape, kind))
    return made


def _type(shape: tuple[int, ...], kind: tuple[int, str]) -> Any:
    from coremltools.proto import MIL_pb2

    tensor = MIL_pb2.TensorType(dataType=MIL_pb2.DataType.Value(kind[1]), rank=len(shape))
    for size in shape:
        tensor.dimensions.add().constant.size = size
    return MIL_pb2.ValueType(tensorType=tensor)


def _blob(writer: WeightWriter, array: np.ndarray, shape: tuple[int, ...], kind: tuple[int, str], padding: int = 0) -> Any:
    """A reference to values of `shape` that were written."""
    from coremltools.proto import MIL_pb2

    made = MIL_pb2.Value(type=_type(shape, kind))
    made.blobFileValue.fileName = WEIGHT_FILE
    made.blobFileValue.offset = writer.add(kind[0], padding, np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return made


def _string(text: str) -> Any:
    from coremltools.proto import MIL_pb2

    made = MIL_pb2.Value(type=_type((), (0, "STRING")))
    made.immediateValue.tensor.strings.values.append(text)
    return made


def _text(name: str, text: str) -> Any:
    made = _operation("const", name, (), (0, "STRING"))
    made.attributes["val"].CopyFrom(_string(text))
    return made


def _reads(operation: Any, parameter: str, name: str) -> bool:
    return parameter in operation.inputs and any(b.name == name for b in operation.inputs[parameter].arguments)


def _with_casts(operations: Iterable[Any], tables: set[str]) -> Iterator[Any]:
    """The operations, each lookup in one of `tables` with a cast of the 8-bit rows that it now gives."""
    from coremltools.proto import MIL_pb2

    for operation in operations:
        if not any(_reads(operation, key, table) for key in operation.inputs for table in tables):
            yield operation
            continue
        if operation.type != "gather":
            raise RuntimeError(f"a table of embeddings is used by {operation.type}, expected gather")
        result = operation.outputs[0]
        cast = _operation("cast", result.name, tuple(d.constant.size for d in result.type.tensorType.dimensions), _FP16)
        result.name = f"{result.name}_in_8_bits"
        result.type.tensorType.dataType = MIL_pb2.DataType.Value(_INT8[1])
        operation.attributes["name"].CopyFrom(_string(result.name))
        cast.inputs["x"].arguments.add().name = result.name
        cast.inputs["dtype"].arguments.add().name = _CAST_TO
        yield operation
        yield cast
