"""A source under other names, with some of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from snapgen_deploy.checkpoint.header import TensorInfo
from snapgen_deploy.checkpoint.sources import DerivedSource


@dataclass(frozen=True)
class RenamedSource(DerivedSource):
    """Tensors of another source; `names` has that one's name for each."""

    names: Mapping[str, str]

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What there is."""
        held = self.source.tensors
        return {new: held[old] for new, old in self.names.items()}

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """As the other's."""
        return self.source.read(self.names[name], shape)
