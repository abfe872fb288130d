"""Reads and writes ONNX files without their weights in memory: one tensor at a time.

onnx and onnx-ir hold a model's weights twice while they write a file (in the message, and in the message's serialised form)
and twice while they read one. Here the message has no weights: reading skips the bytes of large initializers and returns their
offsets, and writing copies each tensor directly to its offset. The bytes are those of `ModelProto.SerializeToString`, that is,
fields in the order of their numbers.

Layout: protobuf's wire format, https://protobuf.dev/programming-guides/encoding; field numbers from onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx
    import onnx_ir

BIG = 2_000_000_000  # bytes of a file from which on weights are stored outside: protobuf's limit is 2 GiB
_LARGE = 1024  # bytes; smaller weights stay in the message
_GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9  # field numbers in ModelProto, GraphProto and TensorProto
VARINT, FIXED64, MESSAGE, FIXED32 = 0, 1, 2, 5  # wire types
Places = dict[str, tuple[int, int]]  # initializer -> offset and length of its data in the file, bytes


def read(path: Path) -> tuple[onnx.ModelProto, Places]:
    """The model at `path` without the data of its large initializers, and their places in the file.

    External data is not read.

    Raises:
        ValueError: if the file is not a model; also protobuf's DecodeError.
    """
    import onnx

    places: Places = {}
    with path.open("rb") as file:
        total = path.stat().st_size
        rest, graphs = _without(file, total, _GRAPH)
        model = onnx.ModelProto.FromString(rest)
        for begin, end in graphs:
            file.seek(begin)
            rest, initializers = _without(file, end, INITIALIZER)
            model.graph.MergeFromString(rest)
            for first, last in initializers:
                file.seek(first)
                rest, data = _without(file, last, RAW_DATA, _LARGE)
                tensor = model.graph.initializer.add()
                tensor.MergeFromString(rest)
                if data:
                    places[tensor.name] = (data[-1][0], data[-1][1] - data[-1][0])
    return model, places


def load(path: Path) -> onnx.ModelProto:
    """The model at `path` with all its weights, external ones included, held once.

    Raises:
        ValueError: if the file is not a model; also protobuf's DecodeError.
    """
    from onnx.external_data_helper import load_external_data_for_model

    model, places = read(path)
    with path.open("rb") as file:
        for tensor in model.graph.initializer:
            if tensor.name in places:
                offset, length = places[tensor.name]
                file.seek(offset)
                tensor.raw_data = file.read(length)
    load_external_data_for_model(model, str(path.parent))
    return model


def save(model: onnx.ModelProto, path: Path, external: int) -> None:
    """Save `model` with its weights inside, or beside it from `external` bytes on. The model may lose its weights."""
    import onnx
    import onnx_ir

    data = f"{path.name}.data"
    path.unlink(missing_ok=True)
    path.with_name(data).unlink(missing_ok=True)
    if held_bytes(model) >= external:
        onnx.save(model, str(path), save_as_external_data=True, location=data)
    else:
        write(onnx_ir.serde.deserialize_model(model), path)


def held_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the initializers that a model holds; `ByteSize` would serialise it, and fails beyond 2 GiB."""
    return sum(len(t.raw_data) for t in model.graph.initializer)


def infer_shapes(model: onnx.ModelProto) -> None:
    """Infer the values' shapes and types with onnx, in place, without a second copy of the weights."""
    import onnx

    bare = onnx.ModelProto()
    bare.ir_version = model.ir_version
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    for name in ("node", "input", "output", "value_info"):
        getattr(bare.graph, name).extend(getattr(model.graph, name))
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) < _LARGE:
            bare.graph.initializer.append(tensor)
        else:
            bare.graph.initializer.add(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    del model.graph.value_info[:]
    model.graph.value_info.extend(onnx.shape_inference.infer_shapes(bare).graph.value_info)


def refer(model: onnx.ModelProto, places: Places, location: str) -> None:
    """Make the initializers in `places` refer to the file at `location`, a path relative to the model's own folder."""
    for tensor in model.graph.initializer:
        if tensor.name in places:
            refer_one(tensor, location, *places[tensor.name])


def refer_one(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Make one initializer refer to `length` bytes from `offset` on in the file at `location`."""
    import onnx

    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def write(model: onnx_ir.Model, path: Path) -> None:
    """Save `model` at `path` with all weights inside; peak memory beyond the model's own is one tensor."""
    import onnx_ir

    held: list[Any] = [v for v in model.graph.initializers.values() if v.const_value is not None and _streamed(v.const_value)]
    tensors: dict[str, Any] = {value.name: value.const_value for value in held}
    for value in held:
        tensor = value.const_value
        value.const_value = onnx_ir.ExternalTensor(
            path.name, 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=value.name, doc_string=tensor.doc_string
        )
    try:
        message = onnx_ir.to_proto(model)
    finally:
        for value in held:
            value.const_value = tensors[value.name]
    with path.open("wb") as file:
        _write(message, tensors, file)


def _streamed(tensor: Any) -> bool:
    """Whether a tensor is large and would be stored as raw data."""
    import onnx_ir

    as_numbers = isinstance(tensor, onnx_ir.serde.TensorProtoTensor) and not tensor.raw.HasField("raw_data")
    return bool(tensor.nbytes >= _LARGE) and not as_numbers


def _write(model: onnx.ModelProto, tensors: Mapping[str, Any], file: IO[bytes]) -> None:
    """`model` with the data of `tensors` in the place of its references."""
    import onnx_ir

    parts: list[tuple[bytes, Any, bytes]] = []  # of an initializer: up to its data, its data, from there on
    for message in model.graph.initializer:
        tensor = tensors.get(message.name)
        if tensor is None:
            parts.append((_head(INITIALIZER, message.ByteSize()) + message.SerializeToString(), None, b""))
            continue
        message.ClearField("external_data")
        message.ClearField("data_location")
        before, after = _around(message, RAW_DATA)
        before += _head(RAW_DATA, tensor.nbytes)
        parts.append((_head(INITIALIZER, len(before) + tensor.nbytes + len(after)) + before, tensor, after))
    model.graph.ClearField("initializer")
    first, last = _around(model.graph, INITIALIZER)
    length = sum(len(before) + (0 if tensor is None else tensor.nbytes) + len(after) for before, tensor, after in parts)
    model.ClearField("graph")
    head, tail = _around(model, _GRAPH)
    file.write(head + _head(_GRAPH, len(first) + length + len(last)) + first)
    for before, tensor, after in parts:
        file.write(before)
        if tensor is not None:
            file.write(tensor.tobytes())
            if isinstance(tensor, onnx_ir.ExternalTensor):
                tensor.release()  # its pages of the mapped file
        file.write(after)
    file.write(last + tail)


def _around(message: Any, number: int) -> tuple[bytes, bytes]:
    """The serialised fields below and above field `number`, which is not set."""
    before, after = type(message)(), type(message)()
    before.CopyFrom(message)
    after.CopyFrom(message)
    for descriptor, _ in message.ListFields():
        (after if descriptor.number < number else before).ClearField(descriptor.name)
    return before.SerializeToString(), after.SerializeToString()


def _head(number: int, length: int) -> bytes:
    """Tag and length of a field with bytes."""
    return _varint(number << 3 | MESSAGE) + _varint(length)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _without(file: IO[bytes], end: int, number: int, least: int = 0) -> tuple[bytes, list[tuple[int, int]]]:
    """The message from here to `end` without its fields `number` of at least `least` bytes, and the spans of their contents."""
    kept, skipped = bytearray(), []
    for field, start, content, stop in _fields(file, end):
        if field == number and stop - content >= least:
            skipped.append((content, stop))
        else:
            file.seek(start)
            kept += file.read(stop - start)
    return bytes(kept), skipped


def _fields(file: IO[bytes], end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, start, start of the content, end) of every field from here to `end`.

    Raises:
        ValueError: if a field goes beyond `end`, or has an unknown wire type.
    """
    position = file.tell()
    while position < end:
        file.seek(position)
        tag = _read_varint(file)
        kind = tag & 7
        if kind == MESSAGE:
            length = _read_varint(file)
            content = file.tell()
        else:
            content = file.tell()
            if kind == VARINT:
                _read_varint(file)
            elif kind not in (FIXED32, FIXED64):
                raise ValueError(f"field of wire type {kind} at byte {position}")
            length = {VARINT: file.tell() - content, FIXED32: 4, FIXED64: 8}[kind]
        stop = content + length
        if stop > end:
            raise ValueError(f"field at byte {position} ends at byte {stop}, beyond byte {end}")
        yield tag >> 3, position, content, stop
        position = stop


def _read_varint(file: IO[bytes]) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("the file ends within a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError(f"a number of more than 10 bytes ends at byte {file.tell()}")
