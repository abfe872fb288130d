"""Where a checkpoint's tensors lie: each of our names stands for something that can be read from a file."""

from __future__ import annotations

from dataclasses import dataclass, field
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
