"""A source under other names, with some of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from snapgen_deploy.checkpoint.header import TensorInfo
from snapgen_deploy.checkpoint.sources import Source


@dataclass(frozen=True)
class RenamedSource:
    """Tensors of another source; `names` has that one's name for each."""

    source: Source = field(repr=False)
    names: Mapping[str, str]

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What there is."""
        held = self.source.tensors
        return {new: held[old] for new, old in self.names.items()}

    @property
    def metadata(self) -> Mapping[str, str]:
        """As the other's."""
        return self.source.metadata

    @property
    def files(self) -> tuple[Path, ...]:
        """As the other's."""
        return self.source.files

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """As the other's."""
        return self.source.read(self.names[name], shape)
