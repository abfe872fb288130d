"""Strict reading of a safetensors header: nothing in the file is trusted before it is checked.

Layout (the safetensors format specification): 8 bytes little-endian length N, N bytes of JSON, then the data. The JSON maps
each name to dtype, shape and data_offsets, and `__metadata__` to strings. Tensors fill the data without holes or overlaps.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.documents import DuplicateName, parse_json, refuse, shown
from snapgen_deploy.system.files import stamp
from snapgen_deploy.system.lfs import refuse_pointer

# Bytes of one element, from the specification. Sub-byte dtypes are left out: no component of ours can hold them.
DTYPE_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
FLOATS = ("F32", "F16", "BF16", "F64")  # what weights may be stored as
LARGEST_HEADER = 100_000_000  # bytes, the limit that the specification sets


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor. `dtype` is a safetensors code such as F32."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A checked header: tensors by name, the byte of the file where each begins, metadata, and the file's stamp then."""

    tensors: dict[str, TensorInfo]
    begins: dict[str, int]
    metadata: dict[str, str]
    stamp: tuple[int, int, int]


def read_header(path: Path) -> Header:
    """Read and check the header of `path`.

    Raises:
        BadInput: if the file cannot be read, is not a safetensors file, or its header is wrong; one message for all problems.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            total = status.st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            refuse_pointer(path)
            _check_length(path, prefix, total, length)
            text = file.read(length)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give a readable checkpoint") from None
    if not text.startswith(b"{"):
        raise BadInput(f"{path}: not a safetensors file: its header does not begin with '{{'")
    document = _decode(path, text)
    metadata = document.pop("__metadata__", {})
    start = 8 + length
    problems = _metadata_problems(metadata)
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, TensorInfo] = {}
    for name, entry in document.items():
        problem = _entry_problem(entry)
        if problem:
            problems.append(f"{shown(name)} {problem}")
            continue
        begin, end = entry["data_offsets"]
        spans.append((begin, end, name))
        tensors[name] = TensorInfo(tuple(entry["shape"]), entry["dtype"], end - begin)
    if not problems:  # spans mean something only once every entry is sound
        problems = _span_problems(sorted(spans), total - start)
    refuse(f"{path}: the safetensors header is wrong", problems, "; fetch or write the file again")
    return Header(tensors, {name: start + begin for begin, _, name in spans}, metadata, stamp(status))


def _check_length(path: Path, prefix: bytes, total: int, length: int) -> None:
    if len(prefix) < 8:
        raise BadInput(f"{path}: truncated: got {total} bytes, a safetensors file has at least 10")
    # Only if the length is impossible: a valid file with a header of 640 bytes also begins with 80 02.
    impossible = length > min(LARGEST_HEADER, total - 8)
    if impossible and prefix.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise BadInput(f"{path}: a PyTorch or pickle file, not safetensors; name it .pt or save it as safetensors")
    if length < 2 or length > LARGEST_HEADER:
        raise BadInput(
            f"{path}: not a safetensors file: its first 8 bytes give a header of {length} bytes, expected 2 to {LARGEST_HEADER}"
        )
    if length > total - 8:
        raise BadInput(
            f"{path}: truncated, or not a safetensors file: its first 8 bytes give a header of {length} bytes, "
            f"the file has {total - 8} after them"
        )


def _decode(path: Path, text: bytes) -> dict[str, Any]:
    try:
        document = parse_json(text.decode("utf-8"))
    except DuplicateName as error:
        raise BadInput(f"{path}: the safetensors header is wrong: {error}; write the file again") from None
    except ValueError as error:
        raise BadInput(f"{path}: not a safetensors file: its header is not JSON ({error})") from None
    assert isinstance(document, dict)  # the text begins with '{'
    return document


def _metadata_problems(metadata: object) -> list[str]:
    if isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values()):
        return []
    return ["__metadata__ must map strings to strings"]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _entry_problem(entry: object) -> str | None:
    """Why one tensor's entry is invalid, or None."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return "must have exactly dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        return f"has dtype {shown(dtype)}, expected one of {', '.join(DTYPE_BYTES)}"
    if not isinstance(shape, list) or len(shape) > 8 or not all(map(_is_count, shape)):
        return f"has shape {shown(shape)}, expected at most 8 counts"
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        return f"has data_offsets {shown(offsets)}, expected [begin, end]"
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        return f"spans {shown(offsets[1] - offsets[0])} bytes, {dtype} of shape {shown(shape)} takes {shown(expected)}"
    return None


def _span_problems(spans: list[tuple[int, int, str]], available: int) -> list[str]:
    """Overlaps, holes and ends beyond the file, of spans sorted by offset; `available` bytes follow the header."""
    found, position = [], 0
    last = max((end for _, end, _ in spans), default=0)
    if last > available:
        found.append(f"truncated: the tensors take {shown(last)} bytes, the file has {available} after its header")
    elif last < available:
        found.append(f"{available - last} bytes after the last tensor belong to none")
    for begin, end, name in spans:  # each against its neighbour only, so that one bad span is not reported for all that follow
        place = f"{shown(name)} begins at byte {shown(begin)}"
        if begin < position:
            found.append(f"{place} and overlaps the tensor before it, which ends at {shown(position)}")
        elif begin > position:
            found.append(f"{place}, the one before it ends at {shown(position)}: bytes of no tensor between")
        position = end
    return found
