"""Writes the weight file of a Core ML package. Its layout: see `snapgen_deploy.export.mil.saved.blob`."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from snapgen_deploy.export.mil.saved.blob import ALIGNMENT, RECORD, SENTINEL, VERSION, WeightFile

WEIGHT_FILE = "@model_path/weights/weight.bin"


@dataclass
class WeightWriter:
    """A weight file that is being written; equal tensors get the same offset."""

    file: IO[bytes]
    places: dict[tuple[int, int, int, bytes], int] = field(default_factory=dict)  # type, bits, bytes, digest -> record's offset
    end: int = ALIGNMENT  # after the header, which is written last

    def add(self, kind: int, padding_bits: int, data: Any) -> int:
        """Write a tensor unless it is there, and return the offset of its record."""
        key = (kind, padding_bits, data.nbytes, hashlib.sha256(data).digest())
        if key not in self.places:
            start = self.end + ALIGNMENT
            self.file.seek(self.end)
            self.file.write(RECORD.pack(SENTINEL, kind, data.nbytes, start, padding_bits).ljust(ALIGNMENT, b"\0"))
            self.file.write(data)
            self.places[key] = self.end
            self.end = -(-(start + data.nbytes) // ALIGNMENT) * ALIGNMENT
        return self.places[key]

    def move(self, values: Iterable[Any], folder: Path) -> None:
        """Copy tensors that messages refer to from the weight files below `folder`, and let the messages refer to this one."""
        sources: dict[str, WeightFile] = {}
        for value in sorted(values, key=lambda v: (v.fileName, v.offset)):
            if value.fileName not in sources:
                sources[value.fileName] = WeightFile(folder / value.fileName.removeprefix("@model_path/"))
            value.offset = self.add(*sources[value.fileName].raw(value.offset))
            value.fileName = WEIGHT_FILE

    def finish(self) -> None:
        """Write the header, now that the number of tensors is known."""
        self.file.seek(0)
        self.file.write(struct.pack("<II", len(self.places), VERSION).ljust(ALIGNMENT, b"\0"))
