"""Reads a saved .mlpackage: manifest, model specification and weight files, straight from disk.

Only the protocol-buffer classes of coremltools are used. Its own loader (`milproto.load`) rebuilds a PyMIL program, runs its
value inference and holds every weight in memory; here weights stay in the mapped file until an operation asks for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy.export.mil.saved.blob import WeightFile, from_bytes
from snapgen_deploy.export.mil.saved.errors import PackageError
from snapgen_deploy.export.mil.saved.interface import read_interface
from snapgen_deploy.export.mil.saved.kinds import not_a_package, not_a_program
from snapgen_deploy.export.mil.saved.program import (
    Binding,
    Block,
    Constant,
    Data,
    Function,
    Interface,
    Operation,
    Package,
    Value,
)
from snapgen_deploy.export.mil.saved.types import DTYPES, DType, ValueType, dtype_named
from snapgen_deploy.export.shared.coremltools import messages
from snapgen_deploy.system.documents import several
from snapgen_deploy.system.lfs import is_pointer, pointer_line

_MODEL_TYPE = "mlProgram"


def model_file(package: Path) -> Path:
    """The specification inside a package directory, found through its manifest.

    Raises:
        PackageError: if `package` is not a .mlpackage, or its manifest is missing or malformed.
    """
    if not package.is_dir() or (package.suffix != ".mlpackage" and not (package / "Manifest.json").is_file()):
        raise PackageError(not_a_package(package))
    listing = package / "Manifest.json"
    try:
        text = listing.read_text()
        if is_pointer(text.encode()):
            raise PackageError(pointer_line(listing))
        manifest = json.loads(text)
        root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackageError(f"{package}: Manifest.json is missing or malformed ({error})") from error
    data = (package / "Data").resolve()
    path = (data / str(root)).resolve()
    if not path.is_relative_to(data) or not path.is_file():
        raise PackageError(f"{package}: its manifest names {root!r}, which is not in it")
    return path


def read_package(package: Path) -> Package:
    """A package without its weights, which are read when an operation needs them.

    Raises:
        PackageError: if it cannot be read or is not an ML Program.
    """
    path = model_file(package)
    proto = messages()
    model = proto.Model_pb2.Model()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PackageError(f"{path}: cannot be read ({error})") from error
    if is_pointer(data):
        raise PackageError(pointer_line(path))
    try:
        model.ParseFromString(data)
    except Exception as error:  # the parser's own error class is not exported by coremltools
        raise PackageError(f"{path}: not a Core ML specification ({error})") from error
    kind = model.WhichOneof("Type")
    if kind != _MODEL_TYPE:
        raise PackageError(not_a_program(package, kind))
    reader = _Reader(path.parent, {number: name for name, number in proto.MIL_pb2.DataType.items()})
    functions = {name: reader.function(name, f) for name, f in model.mlProgram.functions.items()}
    interfaces, default = _interfaces(model, proto)
    missing = sorted(set(interfaces) - set(functions))
    if missing or not functions:
        raise PackageError(f"{package}: described but not in the program: {several(missing or ['every function'])}")
    return Package(functions, interfaces, default, int(model.specificationVersion))


def _interfaces(model: Any, proto: Any) -> tuple[dict[str, Interface], str]:
    """Function name -> interface, and the name of the default function."""
    description = model.description
    if description.functions:
        names = {f.name: read_interface(f, proto) for f in description.functions}
        return names, description.defaultFunctionName or next(iter(names))
    return {"main": read_interface(description, proto)}, "main"


class _Reader:
    """Turns the program's messages into plain data; opens each weight file once."""

    def __init__(self, directory: Path, dtypes: dict[int, str]) -> None:
        self._directory, self._dtypes = directory, dtypes
        self._files: dict[str, WeightFile] = {}

    def function(self, name: str, message: Any) -> Function:
        """One function: the block specialised for its operation set."""
        block = message.block_specializations.get(message.opset)
        if block is None:
            raise PackageError(f"function {name!r}: no block for its operation set {message.opset!r}")
        digits = "".join(c for c in message.opset if c.isdigit())
        return Function(
            name,
            int(digits or 5),
            tuple(Value(v.name, self.type(v.type)) for v in message.inputs),
            self.operations(block.operations, count()),
            tuple(block.outputs),
        )

    def operations(self, messages: Iterable[Any], places: Iterator[int]) -> tuple[Operation, ...]:
        """Operations in order, numbered by `places`."""
        return tuple(self.operation(m, places) for m in messages)

    def operation(self, message: Any, places: Iterator[int]) -> Operation:
        """One operation; attributes other than its name count as inputs, as they do for const and constexpr operations."""
        name, place = "", next(places)
        inputs: dict[str, tuple[Binding, ...]] = {}
        for key, value in message.attributes.items():
            if key == "name":
                name = str(self.constant(value).read())
            else:
                inputs[key] = (self.constant(value),)
        for key, argument in message.inputs.items():
            inputs[key] = tuple(
                b.name if b.WhichOneof("binding") == "name" else self.constant(b.value) for b in argument.arguments
            )
        outputs = tuple(Value(v.name, self.type(v.type)) for v in message.outputs)
        name = name or (outputs[0].name if outputs else "")
        blocks = tuple(
            Block(
                tuple(Value(v.name, self.type(v.type)) for v in block.inputs),
                self.operations(block.operations, places),
                tuple(block.outputs),
            )
            for block in message.blocks
        )
        return Operation(message.type, name, place, inputs, outputs, blocks)

    def dtype(self, number: int) -> DType:
        """Scalar type of the enumeration in the specification."""
        name = self._dtypes.get(number, str(number))
        found = dtype_named(name)
        if found is None:
            raise PackageError(f"values of type {name} are not supported; known are {', '.join(DTYPES)}")
        return found

    def type(self, message: Any) -> ValueType:
        """A value type; what is neither tensor nor state nor list keeps its place with kind "other"."""
        kind = message.WhichOneof("type")
        if kind == "tensorType":
            tensor = message.tensorType
            if tensor.rank < 0:
                return ValueType(self.dtype(tensor.dataType), None)
            sizes = tuple(int(d.constant.size) if d.HasField("constant") else None for d in tensor.dimensions)
            return ValueType(self.dtype(tensor.dataType), sizes)
        if kind == "stateType":
            wrapped = self.type(message.stateType.wrappedType)
            return ValueType(wrapped.dtype, wrapped.shape, "state")
        if kind == "listType":
            return ValueType(self.type(message.listType.type).dtype, None, "list")
        return ValueType(DTYPES["string"], None, "other")

    def constant(self, message: Any) -> Constant:
        """A literal or a reference into a weight file."""
        type_ = self.type(message.type)
        read: Callable[[], Data]
        if message.WhichOneof("value") == "blobFileValue":
            file, offset = message.blobFileValue.fileName, int(message.blobFileValue.offset)

            def read() -> Data:
                return self._weights(file).read(offset, type_.dtype, _static(type_))
        else:

            def read() -> Data:
                return self._immediate(message.immediateValue, type_)

        return Constant(type_, read)

    def _weights(self, name: str) -> WeightFile:
        """`@model_path/weights/weight.bin`, opened once; a name that leaves the package is refused."""
        if name not in self._files:
            path = (self._directory / name.removeprefix("@model_path/")).resolve()
            if not path.is_relative_to(self._directory):
                raise PackageError(f"weight file {name!r} lies outside the package")
            self._files[name] = WeightFile(path)
        return self._files[name]

    def _immediate(self, message: Any, type_: ValueType) -> Data:
        if message.WhichOneof("value") == "list":
            return tuple(self._scalars(message))
        if message.WhichOneof("value") != "tensor":
            raise PackageError(f"literal of kind {message.WhichOneof('value')} is not supported")
        form = message.tensor.WhichOneof("value")
        if form is None:  # nothing set: a tensor without elements
            return np.zeros(_static(type_), type_.dtype.stored)
        values = getattr(message.tensor, form).values
        if form == "strings":
            return str(values[0]) if len(values) == 1 else tuple(str(v) for v in values)
        if form == "bytes":
            return from_bytes(np.frombuffer(bytearray(values), np.uint8), type_.dtype, _static(type_))
        return np.array(values).astype(type_.dtype.stored).reshape(_static(type_))

    def _scalars(self, message: Any) -> Iterator[bool | int | float | str]:
        for value in message.list.values:
            data = self.constant(value).read()
            if isinstance(data, np.ndarray):
                data = data.item()
            if isinstance(data, tuple):
                raise PackageError("a list inside a list literal is not supported")
            yield data


def _static(type_: ValueType) -> tuple[int, ...]:
    sizes = tuple(n for n in type_.shape or () if n is not None)
    if type_.shape is None or len(sizes) != len(type_.shape):
        raise PackageError(f"a constant of type {type_} has no fixed shape")
    return sizes
