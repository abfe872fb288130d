"""Reads tensors from a memory-mapped .mlpackage weight file (MILBlob storage, version 2).

Layout, from the published storage format (apple/coremltools, mlmodel/src/MILBlob/Blob/StorageFormat.hpp): a 64-byte header
(uint32 count, uint32 version), then for each tensor a 64-byte record on a 64-byte boundary: uint32 sentinel 0xDEADBEEF,
uint32 type, uint64 size in bytes, uint64 offset of the data, uint64 padding in bits. Sub-byte integers are packed from the
least significant bit up and may straddle bytes.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from snapgen_deploy.export.mil.saved.errors import PackageError
from snapgen_deploy.export.mil.saved.types import DType
from snapgen_deploy.system.lfs import is_pointer, pointer_line

RECORD = struct.Struct("<IIQQQ")
ALIGNMENT = 64  # bytes, of records and data
SENTINEL = 0xDEADBEEF
VERSION = 2


def unpack_bits(packed: np.ndarray, bits: int, count: int, *, signed: bool = False) -> np.ndarray:
    """`count` integers of `bits` (1 ... 8) bits each out of bytes, least significant bit first; one byte per result."""
    packed = packed.reshape(-1).view(np.uint8)
    if packed.size * 8 < count * bits:
        raise PackageError(f"packed weights: {packed.size} bytes cannot hold {count} values of {bits} bits")
    if bits == 8:
        values = packed[:count]
    elif bits in (2, 4):
        per_byte = 8 // bits
        needed = packed[: -(-count // per_byte)]
        values = np.empty((needed.size, per_byte), np.uint8)
        for i in range(per_byte):
            values[:, i] = (needed >> (i * bits)) & ((1 << bits) - 1)
        values = values.reshape(-1)[:count]
    else:
        flat = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
        values = np.zeros(count, np.uint8)
        for i in range(bits):
            values |= flat[:, i] << i
    if not signed:
        return values
    return ((values ^ (1 << (bits - 1))).astype(np.int16) - (1 << (bits - 1))).astype(np.int8)


def from_bytes(raw: np.ndarray, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes as stored -> array of `shape`; sub-byte types are unpacked."""
    count = math.prod(shape)
    if dtype.bits < 8:
        return unpack_bits(raw, dtype.bits, count, signed=dtype.signed).reshape(shape)
    if raw.size != count * dtype.bits // 8:
        raise PackageError(f"weights: got {raw.size} bytes, {dtype.name} of shape {shape} needs {count * dtype.bits // 8}")
    return raw.view(dtype.stored).reshape(shape)


class WeightFile:
    """One weight file of a package."""

    def __init__(self, path: Path) -> None:
        try:
            # Copy on write: torch refuses read-only memory, and nothing here writes.
            self._bytes = np.memmap(path, dtype=np.uint8, mode="c")
        except (OSError, ValueError) as error:
            raise PackageError(f"{path}: cannot be read ({error})") from error
        self._path = path
        if is_pointer(self._bytes[:64].tobytes()):
            raise PackageError(pointer_line(path))
        version = struct.unpack_from("<I", self._bytes[:64].tobytes(), 4)[0] if self._bytes.size >= 64 else None
        if version != VERSION:
            raise PackageError(f"{path}: not a version {VERSION} weight file (got version {version})")

    def read(self, offset: int, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor whose record is at `offset`, as a view of the file where its type fills whole bytes."""
        return from_bytes(self.raw(offset)[2], dtype, shape)

    def raw(self, offset: int) -> tuple[int, int, np.ndarray]:
        """Number of the storage type, bits of padding, and the bytes (a view of the file) of the record at `offset`."""
        if offset + RECORD.size > self._bytes.size:
            raise PackageError(f"{self._path}: record at {offset} lies beyond the end ({self._bytes.size} bytes)")
        sentinel, kind, size, start, padding = RECORD.unpack(self._bytes[offset : offset + RECORD.size].tobytes())
        if sentinel != SENTINEL:
            raise PackageError(f"{self._path}: no tensor at {offset}")
        if start + size > self._bytes.size:
            raise PackageError(f"{self._path}: truncated, {start + size} bytes needed, {self._bytes.size} there")
        return kind, padding, self._bytes[start : start + size]
