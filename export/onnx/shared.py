"""Stores ONNX models of one component at several picture sizes with one shared data file, each weight once.

An initializer with the bytes of another model's goes to the shared file, and both models refer to the same offset; data of one
model only (rotary tables, absolute positions) stays inside its `.onnx`. Tensors are copied from file to file one at a time.
External data: https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapgen_deploy.export.onnx import file as onnx_file

_ALIGNMENT = 64  # bytes, of tensors in the shared file
CHUNK = 1 << 22


@dataclass(frozen=True)
class Held:
    """The place of an initializer's data."""

    file: Path
    offset: int
    length: int

    def chunks(self) -> Iterator[bytes]:
        """Its bytes in pieces."""
        with self.file.open("rb") as file:
            file.seek(self.offset)
            for start in range(0, self.length, CHUNK):
                yield file.read(min(CHUNK, self.length - start))

    def digest(self) -> bytes:
        """SHA-256 of its bytes."""
        found = hashlib.sha256()
        for chunk in self.chunks():
            found.update(chunk)
        return found.digest()


def join(sources: Mapping[Path, Path], data: Path) -> None:
    """Write each model of `sources` (old path -> new path) with its shared weights in `data`, beside the new models.

    If the models share nothing, `data` is not written.

    Raises:
        Exception: if onnx's checker refuses a new model: its ValidationError.
    """
    import onnx

    models, held, digests = {}, {}, {}
    for source in sources:
        models[source], places = onnx_file.read(source)
        held[source] = _held(models[source], places, source)
        digests[source] = {name: place.digest() for name, place in held[source].items()}
    users = Counter(digest for found in digests.values() for digest in set(found.values()))
    offsets: dict[bytes, int] = {}
    with data.open("wb") as file:
        for source, target in sources.items():
            for tensor in models[source].graph.initializer:
                place = held[source].get(tensor.name)
                if place is None:
                    continue
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
                digest = digests[source][tensor.name]
                if users[digest] == 1:
                    tensor.raw_data = b"".join(place.chunks())
                    continue
                if digest not in offsets:
                    file.write(bytes(-file.tell() % _ALIGNMENT))
                    offsets[digest] = file.tell()
                    file.writelines(place.chunks())
                onnx_file.refer_one(tensor, data.name, offsets[digest], place.length)
            target.write_bytes(models.pop(source).SerializeToString(deterministic=True))
    if not offsets:
        data.unlink()
    for target in sources.values():
        onnx.checker.check_model(str(target), full_check=True)


def _held(model: Any, places: onnx_file.Places, path: Path) -> dict[str, Held]:
    """Initializers whose data is not in the message but in the file itself or in an external one."""
    found = {name: Held(path, offset, length) for name, (offset, length) in places.items()}
    for tensor in model.graph.initializer:
        entry = {e.key: e.value for e in tensor.external_data}
        if entry:
            found[tensor.name] = Held(path.parent / entry["location"], int(entry.get("offset", 0)), int(entry["length"]))
    return found


def shared_bytes(models: Mapping[Path, Any]) -> int:
    """Bytes of external data that more than one of these saved models (path -> message) refers to, each counted once."""
    users: Counter[Held] = Counter()
    for path, model in models.items():
        users.update(set(_held(model, {}, path).values()))
    return sum(place.length for place, count in users.items() if count > 1)
