"""Reads a saved ExecuTorch program without its runtime: methods, ports, delegates and constants."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Port, Weight
from snapgen_deploy.export.executorch.weights import BITS, NUMPY_DTYPES
from snapgen_deploy.system.quiet import first_line

FORWARD = "forward"
PORTS = "ports"  # the method that returns the ports as JSON
LEFT_KEY = "precision_left"  # in that JSON: at which the quantiser took no layer of the program
PREFIX_BYTES = 8  # of a flatbuffer: root offset and file identifier, before the extended header


def method_of(entry: str) -> str:
    """The method that holds the graph of an entry."""
    return entry or FORWARD


def ports_method_of(entry: str) -> str:
    """The method that returns the ports of an entry."""
    return f"{PORTS}_{entry}" if entry else PORTS


def parse_ports(text: str) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs from the text of `ports_json`."""
    data = json.loads(text)
    inputs, outputs = (
        tuple(Port(p["name"], tuple(p["shape"]), p["dtype"], p["doc"]) for p in data[key]) for key in ("inputs", "outputs")
    )
    return inputs, outputs


def read_program(path: Path) -> tuple[Any, int]:
    """The program's flatbuffer without its segments, which hold the weights, and their byte offset in the file.

    Raises:
        ValueError: if the file is shorter than its segments.
    """
    from snapgen_deploy.export.executorch.reading import ExtendedHeader, extended_header, flatbuffer_to_program

    with path.open("rb") as file:
        header = extended_header(file.read(ExtendedHeader.EXPECTED_LENGTH + PREFIX_BYTES))
        file.seek(0)
        if header is None:
            return flatbuffer_to_program(file.read()), 0
        program = flatbuffer_to_program(file.read(header.program_size))
    end = header.segment_base_offset + max((s.offset + s.size for s in program.segments), default=0)
    if end > (total := path.stat().st_size):
        raise ValueError(f"its segments end at byte {end}, the file has {total}")
    return program, header.segment_base_offset


def read_plan(path: Path, entry: str) -> tuple[Any, int, Any]:
    """A saved program as `read_program` returns it, and the plan of the method of `entry`.

    Raises:
        BadInput: if the file is missing, is not a program, or has no such method.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        program, base = read_program(path)
        return program, base, next(p for p in program.execution_plan if p.name == method_of(entry))
    except Exception as error:
        raise BadInput(
            f"{path.name}: not an ExecuTorch program with a method '{method_of(entry)}': {first_line(error)}"
        ) from error


def constant_text(program: Any, method: str) -> str:
    """The constant text that a method returns, read from the file.

    Raises:
        BadInput: if there is no such method, or it does not return a constant text.
    """
    plan = next((p for p in program.execution_plan if p.name == method), None)
    text = getattr(plan.values[plan.outputs[0]].val, "string_val", None) if plan is not None and plan.outputs else None
    if text is None:
        raise BadInput(f"got methods {[p.name for p in program.execution_plan]}, expected one '{method}' that returns a text")
    return str(text)


def precision_left(program: Any, plan: Any) -> str:
    """The precision at which a quantiser took no layer of a method, as its ports state it; "" for every other method."""
    try:
        stated = json.loads(constant_text(program, ports_method_of("" if plan.name == FORWARD else plan.name)))
    except BadInput:
        return ""
    return str(stated.get(LEFT_KEY, ""))


@dataclasses.dataclass(frozen=True)
class StoredDelegate:
    """A delegate of a saved program (None: the program alone), and the file with its data."""

    path: Path
    program: Any  # of `read_program`
    base: int  # byte of the file where the segments begin
    delegate: Any

    def payload(self) -> bytes:
        """The delegate's payload."""
        from snapgen_deploy.export.executorch.reading import DataLocation

        place = self.delegate.processed
        if place.location == DataLocation.INLINE:
            return bytes(self.program.backend_delegate_data[place.index].data)
        return self.segment(place.index)

    def named(self, key: str) -> bytes:
        """Named data of the program.

        Raises:
            BadInput: if there are none of that name.
        """
        found = {data.key: data.segment_index for data in self.program.named_data or ()}
        if key not in found:
            raise BadInput(f"{self.path.name}: a delegate refers to the data {key!r}, which the program does not hold")
        return self.segment(found[key])

    def segment(self, index: int) -> bytes:
        """One segment of the file."""
        segment = self.program.segments[index]
        with self.path.open("rb") as file:
            file.seek(self.base + segment.offset)
            return file.read(segment.size)


def portable_constants(plan: Any) -> dict[str, Weight]:
    """Constants that operators outside the delegates read, by name."""
    from snapgen_deploy.export.executorch.reading import Tensor

    found = {}
    for index, value in enumerate(v.val for v in plan.values):
        if isinstance(value, Tensor) and (value.data_buffer_idx or value.extra_tensor_info is not None):
            info = value.extra_tensor_info
            name = info.fully_qualified_name if info is not None and info.fully_qualified_name else f"constant.{index}"
            kind = NUMPY_DTYPES.get(value.scalar_type.name.lower(), value.scalar_type.name.lower())
            values = math.prod(value.sizes)
            found[name] = Weight(kind, values, values * BITS.get(kind, 32), tuple(value.sizes))
    return found
