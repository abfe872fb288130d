"""Sources of tensors: safetensors files (one or many shards), or a PyTorch state dict without code."""

from __future__ import annotations

import mmap
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from snapgen_deploy.checkpoint.header import Header, TensorInfo, read_header
from snapgen_deploy.checkpoint.pickled import check_archive, refused_code
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.names import TOKENIZER, numbered
from snapgen_deploy.models.config import MOST_OTHERS
from snapgen_deploy.system.documents import LONGEST_NAME, cut, in_one_line, shown
from snapgen_deploy.system.files import stamp
from snapgen_deploy.system.lfs import refuse_pointer
from snapgen_deploy.system.quiet import first_line

# Of a .pt, by the size of its file: what few bytes can describe is not followed without end.
DEEPEST = 16  # dictionaries within each other
MOST_NAMES = 16  # characters of all names together, for each byte
MOST_VIEWS = (
    8  # bytes of all tensors together, for each byte: tied weights are there twice, an expanded one any number of times
)

# What a checkpoint says of itself, in a header's metadata or config.json; further text encoders have tokenizers of their own.
KEYS = ("snapgen_config", TOKENIZER, "license", *(numbered(TOKENIZER, 1 + i) for i in range(MOST_OTHERS)))


class Source(Protocol):
    """Named tensors on disk."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What there is, without reading it."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """Strings that the files carry about themselves."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors, in order."""
        ...

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The leading part of size `shape`, in the stored dtype; may be a view of a memory-mapped file."""
        ...


@dataclass(frozen=True)
class DerivedSource:
    """Tensors that are made of another source's; files and what they say of themselves are that one's."""

    source: Source = field(repr=False)

    @property
    def metadata(self) -> Mapping[str, str]:
        """As the other's."""
        return self.source.metadata

    @property
    def files(self) -> tuple[Path, ...]:
        """As the other's."""
        return self.source.files


@dataclass
class SafetensorsSource:
    """One or more safetensors files whose headers were checked. A file is mapped for as long as a tensor read from it lives."""

    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    owner: dict[str, Path]
    _headers: dict[Path, Header] = field(repr=False)

    @classmethod
    def of(cls, files: tuple[Path, ...]) -> SafetensorsSource:
        """Check the headers of `files`; a name in two of them is an error, and so is a key of ours that says two things."""
        tensors: dict[str, TensorInfo] = {}
        owner: dict[str, Path] = {}
        metadata: dict[str, str] = {}
        headers = {path: read_header(path) for path in files}
        twice = []
        for path, header in headers.items():
            for name, info in header.tensors.items():
                if name in owner:
                    twice.append(f"{shown(name)} is in {owner[name].name} and in {path.name}")
                tensors[name] = info
                owner.setdefault(name, path)
            for key in KEYS:
                if key in metadata and header.metadata.get(key, metadata[key]) != metadata[key]:
                    raise BadInput(f"{path}: its {key} is not that of the shards before it; fetch shards of one checkpoint")
            metadata = header.metadata | metadata
        if twice:
            raise BadInput(
                in_one_line(f"{files[0].parent}: tensors duplicated across shards", twice, "; keep each in one shard")
            )
        return cls(files, tensors, metadata, owner, headers)

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A view of the mapped file: only the pages of the leading part are ever read.

        Mapped anew for each tensor: the pages of a mapping count as resident for as long as it lasts.
        """
        path, info = self.owner[name], self.tensors[name]
        header = self._headers[path]
        if not info.elements:
            return torch.empty(shape, dtype=TYPES[info.dtype])
        begin = header.begins[name]
        before = begin % mmap.ALLOCATIONGRANULARITY
        try:
            with path.open("rb") as file:
                if stamp(os.fstat(file.fileno())) != header.stamp:
                    raise BadInput(f"{path}: was changed while it was read; run again when nothing writes to it")
                pages = mmap.mmap(file.fileno(), before + info.nbytes, access=mmap.ACCESS_COPY, offset=begin - before)
        except OSError as error:
            raise BadInput(f"{path}: tensor {name!r} cannot be read ({error}); fetch or write the file again") from None
        whole = torch.frombuffer(pages, dtype=TYPES[info.dtype], count=info.elements, offset=before)
        part: Tensor = whole.view(info.shape)[tuple(slice(0, n) for n in shape)]
        return part


@dataclass
class TorchSource:
    """A `.pt` file: tensors mapped from disk. What is no plain tensor has a dtype that names its type."""

    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    _values: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, path: Path) -> TorchSource:
        """Open with `weights_only=True`; nested dicts are joined with dots. Code in the file is refused, never run."""
        size = path.stat().st_size
        values = dict(_flatten(path, _load_without_code(path), MOST_NAMES * size))
        if not values:
            raise BadInput(f"{path}: holds no tensors; expected a state dict")
        tensors = {name: _info(value) for name, value in values.items()}
        if (total := sum(info.nbytes for info in tensors.values())) > MOST_VIEWS * size:
            raise BadInput(
                f"{path}: its tensors take {shown(total)} bytes, the file has {size}: they repeat the same values; "
                "save them with .contiguous(), each once"
            )
        return cls((path,), tensors, {}, values)

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A view of the mapped file."""
        value = self._values[name]
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            raise BadInput(f"{self.files[0]}: {name!r} is {self.tensors[name].dtype}, expected a dense tensor")
        part: Tensor = value.detach()[tuple(slice(0, n) for n in shape)]
        return part


CODES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0", torch.complex64: "C64", torch.int8: "I8", torch.uint8: "U8", torch.int16: "I16",
    torch.uint16: "U16", torch.int32: "I32", torch.uint32: "U32", torch.int64: "I64", torch.uint64: "U64",
}  # fmt: skip
TYPES = {code: dtype for dtype, code in CODES.items()}


def _info(value: object) -> TensorInfo:
    if not isinstance(value, Tensor):
        return TensorInfo((), f"python {type(value).__name__}", 0)
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        return TensorInfo(tuple(value.shape), "not a dense tensor", 0)
    code = CODES.get(value.dtype, str(value.dtype).removeprefix("torch."))
    return TensorInfo(tuple(value.shape), code, value.numel() * value.element_size())


def _flatten(path: Path, value: object, room: int) -> Iterator[tuple[str, object]]:
    """Leaves of nested dicts; two that come to one name are an error, and names of more than `room` characters together."""
    seen: set[str] = set()
    for name, leaf in _leaves(path, value, "", 0):
        room -= len(name) + 1
        if room < 0:
            raise BadInput(f"{path}: its dictionaries hold each other over and over; save a flat state dict, names to tensors")
        if name in seen:
            raise BadInput(f"{path}: tensor {shown(name)} is in the file twice, once as a nested name; keep one")
        seen.add(name)
        yield name, leaf


def _leaves(path: Path, value: object, where: str, depth: int) -> Iterator[tuple[str, object]]:
    if not isinstance(value, Mapping):
        yield where, value
        return
    if depth == DEEPEST:
        raise BadInput(f"{path}: its dictionaries are nested deeper than {DEEPEST}; save a flat state dict, names to tensors")
    for key, item in value.items():
        yield from _leaves(path, item, f"{where}.{key}" if where else str(key), depth + 1)


def _load_without_code(path: Path) -> Mapping[str, object]:
    with _reading(path):
        with path.open("rb") as file:
            magic = file.read(4)
        refuse_pointer(path)
        if magic != b"PK\x03\x04":
            raise BadInput(
                f"{path}: not a PyTorch checkpoint: a bare pickle may hold code and is never opened; "
                "save it with torch.save, or better as safetensors"
            )
        check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles in another protocol, which are read or refused
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(loaded, Mapping):
        raise BadInput(f"{path}: holds a {type(loaded).__name__}, expected a state dict (names to tensors)")
    return loaded


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What torch.load says of a bad file, as one line."""
    import pickle

    try:
        yield
    except BadInput:
        raise
    except pickle.UnpicklingError as error:
        called = re.search(r"(?:GLOBAL|global)\s+`?([\w.]+)", str(error))
        raise BadInput(refused_code(path, called[1] if called else "")) from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give a readable checkpoint") from None
    except Exception as error:  # torch raises a dozen kinds for a damaged zip; none of them may escape as a traceback
        first = cut(first_line(error), LONGEST_NAME)
        raise BadInput(f"{path}: damaged or not a PyTorch checkpoint ({first}); fetch or write the file again") from None
