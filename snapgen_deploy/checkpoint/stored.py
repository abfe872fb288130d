"""Where a checkpoint's tensors lie: each of our names stands for something that can be read from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from torch import Tensor

from snapgen_deploy.checkpoint.header import TensorInfo
from snapgen_deploy.checkpoint.sources import Source


class Stored(Protocol):
    """A tensor under one of our names."""

    @property
    def info(self) -> TensorInfo:
        """Shape, dtype and bytes, without reading it."""
        ...

    def read(self, shape: tuple[int, ...]) -> Tensor:
        """The leading part of size `shape`, in the stored dtype; may be a view of a memory-mapped file."""
        ...


@dataclass(frozen=True)
class FileTensor:
    """A tensor as a file holds it."""

    source: Source = field(repr=False)
    name: str  # the file's

    @property
    def info(self) -> TensorInfo:
        """As the file's header says."""
        return self.source.tensors[self.name]

    def read(self, shape: tuple[int, ...]) -> Tensor:
        """As the source reads it."""
        return self.source.read(self.name, shape)


def stored_as(source: Source) -> dict[str, Stored]:
    """The tensors of a source by its own names."""
    return {name: FileTensor(source, name) for name in sorted(source.tensors)}


@dataclass(frozen=True)
class StoredSource:
    """Tensors of several sources as one."""

    stored: Mapping[str, Stored] = field(repr=False)
    files: tuple[Path, ...]

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What there is."""
        return {name: tensor.info for name, tensor in self.stored.items()}

    @property
    def metadata(self) -> Mapping[str, str]:
        """None: each file had its own."""
        return {}

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """As the source reads it that has it."""
        part: Tensor = self.stored[name].read(shape)
        return part
