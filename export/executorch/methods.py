"""Joins several ExecuTorch programs into one `.pte` with a method each, and stores each weight once.

XNNPACK's constants are in a program's named data, under the SHA-256 of their bytes, and a program stores a name once for all
its methods. So programs of one network at several picture sizes share them (measured with executorch 1.4.1: every constant of a
student's delegate). Constants that methods pass to a delegate are in one segment, which is deduplicated here by content.
Lowering all sizes in one process (`to_edge_transform_and_lower` of a dictionary) shares the named data too, but holds every
size's graphs and serialised constants at once; joining finished files needs the memory of one.

This concerns the file. In memory XNNPACK packs the weights of every loaded method; its weight cache, which the builds for iOS
and Android enable (pytorch/executorch#13738), lets methods of one file share the packed weights. An app that draws one size at
a time loads one method at a time and needs neither.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from snapgen_deploy.errors import BadInput

Read = Callable[[Path], tuple[Any, int]]  # path -> program without segments, byte at which those begin
Rewrite = Callable[[str, bytes], bytes]  # method, by its new name, and a delegate's payload -> the payload to store


def _as_it_is(method: str, payload: bytes) -> bytes:
    return payload


def join(
    parts: Mapping[str, tuple[Path, Mapping[str, str]]],
    read: Read,
    path: Path,
    rewritten: Rewrite = _as_it_is,
    more: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write one program at `path` with the methods of all parts.

    parts: any name -> (a `.pte`, old -> new names of its methods). `rewritten` replaces the payloads of delegates; `more` are
    named data to be added.

    Raises:
        BadInput: if a program has methods without a new name, has mutable data, or has other data under a shared name.
    """
    from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
    from executorch.exir._serialize._program import PTEFile, serialize_pte_binary
    from executorch.exir._serialize.data_serializer import DataEntry
    from executorch.exir.schema import BackendDelegateDataReference, BackendDelegateInlineData, Buffer, DataLocation

    merged: Any = None
    constants: dict[bytes, int] = {b"": 0}  # content -> index; 0 stands for "no constant"
    buffers: list[bytes] = []
    entries: dict[str, Any] = {}
    for source, names in parts.values():
        program, base = read(source)
        if program.mutable_data_segments or {p.name for p in program.execution_plan} != set(names):
            methods = sorted(p.name for p in program.execution_plan)
            raise BadInput(f"{source.name}: got methods {methods}, expected {sorted(names)} and no mutable data")
        with source.open("rb") as file:

            def segment(index: int) -> bytes:
                file.seek(base + program.segments[index].offset)  # noqa: B023 (called within this turn of the loop)
                return file.read(program.segments[index].size)  # noqa: B023

            if merged is None:
                merged = copy.copy(program)
                merged.execution_plan, merged.backend_delegate_data, merged.segments, merged.named_data = [], [], [], []
            stored = _pieces(program, segment)
            for plan in program.execution_plan:
                plan.name = names[plan.name]
                for value in (v.val for v in plan.values):
                    if getattr(value, "data_buffer_idx", 0):
                        value.data_buffer_idx = constants.setdefault(stored[value.data_buffer_idx], len(constants))
                for delegate in plan.delegates:
                    place = delegate.processed
                    inline = place.location == DataLocation.INLINE
                    payload = program.backend_delegate_data[place.index].data if inline else segment(place.index)
                    delegate.processed = BackendDelegateDataReference(DataLocation.INLINE, len(merged.backend_delegate_data))
                    merged.backend_delegate_data.append(BackendDelegateInlineData(rewritten(plan.name, bytes(payload))))
                merged.execution_plan.append(plan)
            for named in program.named_data or ():
                content = segment(named.segment_index)
                if named.key not in entries:
                    entries[named.key] = DataEntry(len(buffers), 1, None)
                    buffers.append(content)
                elif buffers[entries[named.key].buffer_index] != content:  # XNNPACK's keys are digests, others need not be
                    raise BadInput(f"{source.name}: its data named {named.key} are not those of the other sizes")
    for key, content in more.items():
        entries[key] = DataEntry(len(buffers), 1, None)
        buffers.append(content)
    merged.constant_buffer = [Buffer(content) for content in constants]
    merged.constant_segment.segment_index, merged.constant_segment.offsets = 0, []
    whole = PTEFile(merged, None, NamedDataStoreOutput(buffers, entries, {}))
    with path.open("wb") as made:
        serialize_pte_binary(whole, extract_delegate_segments=True).write_to_file(made)


def _pieces(program: Any, segment: Callable[[int], bytes]) -> list[bytes]:
    """Constants of the methods themselves, each with its padding."""
    offsets = list(program.constant_segment.offsets)
    if not offsets:
        return [bytes(b.storage) for b in program.constant_buffer]
    whole = segment(program.constant_segment.segment_index)
    return [whole[start:end] for start, end in zip(offsets, [*offsets[1:], len(whole)], strict=True)]


def shared_bytes(program: Any, users: Mapping[str, set[str]], segment: Callable[[int], bytes]) -> int:
    """Bytes of weights that more than one method of a program uses, each counted once.

    users: method -> keys of the named data that its delegates refer to. Constants outside the delegates count by their index.
    """
    lengths = {named.key: program.segments[named.segment_index].size for named in program.named_data or ()}
    keys = Counter(key for used in users.values() for key in used & set(lengths))
    pieces = _pieces(program, segment)
    indices: Counter[int] = Counter()
    for plan in program.execution_plan:
        indices.update({i for v in plan.values if (i := getattr(v.val, "data_buffer_idx", 0))})
    named_bytes = sum(int(lengths[key]) for key, count in keys.items() if count > 1)
    return named_bytes + sum(len(pieces[index]) for index, count in indices.items() if count > 1)
