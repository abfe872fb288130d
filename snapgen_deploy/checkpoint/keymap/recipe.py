"""How one of our tensors is made of foreign ones.

In this order: each foreign tensor is reshaped and transposed; several are joined, or one is taken apart; the result is reshaped
to ours, cut to its leading part, scaled and shifted. The same lines run on tensors without storage, to learn shapes and types.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from snapgen_deploy.families.component import Shape
from snapgen_deploy.system.quiet import reason_of


@dataclass(frozen=True)
class TensorChange:
    """What a rule does to its tensors beside renaming them."""

    reshape: Shape | None = None  # of each foreign tensor; one of the sizes may be -1
    transpose: tuple[int, ...] | None = None  # order of its axes, after that
    axis: int | None = None  # along which several are joined, or one is taken apart
    stack: int | None = None  # the same along an axis that only theirs or only ours has
    heads: int = 1  # how many times the parts alternate along `axis`
    share: bool = False  # each of ours is the leading part of the same tensor
    as_ours: bool = False  # reshape the result to our tensor's shape
    scale: float = 1.0
    shift: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether tensors stay as they are."""
        return self == TensorChange()


@dataclass(frozen=True)
class TensorRecipe:
    """One of our tensors: the foreign ones that it is made of, and how."""

    sources: tuple[str, ...]
    rule: str  # as the key map has it; "" for a tensor that no rule names
    change: TensorChange = field(default_factory=TensorChange)
    part: int = 0  # which of `parts`
    parts: tuple[Shape, ...] = ()  # our tensors that come of one foreign tensor, by their expected shapes

    @property
    def plain(self) -> bool:
        """Whether it is one foreign tensor as it is."""
        return self.change.plain

    def make(self, tensors: Sequence[Tensor]) -> Tensor:
        """Our tensor, of foreign ones in the order of `sources`; a view where no number changes.

        Raises:
            ValueError: if their shapes do not allow it; the message says which.
        """
        change = self.change
        try:
            arranged = [self._arranged(tensor) for tensor in tensors]
            x = self._joined(arranged) if len(self.sources) > 1 else self._taken(arranged[0])
            x = self._fitted(x)
        except (RuntimeError, IndexError) as error:
            raise ValueError(reason_of(error)) from None
        if change.scale == 1.0 and change.shift == 0.0:
            return x
        return x.to(torch.float32) * change.scale + change.shift

    def _arranged(self, tensor: Tensor) -> Tensor:
        change = self.change
        if change.reshape is not None:
            tensor = tensor.reshape(change.reshape)
        if change.transpose is None:
            return tensor
        if len(change.transpose) != tensor.dim():
            raise ValueError(f"transpose = {list(change.transpose)} does not fit {list(tensor.shape)}")
        return tensor.permute(change.transpose)

    def _joined(self, tensors: Sequence[Tensor]) -> Tensor:
        change = self.change
        if change.stack is not None:
            return torch.stack(list(tensors), change.stack)
        assert change.axis is not None
        if change.heads == 1:
            return torch.cat(list(tensors), change.axis)
        apart = [t.unflatten(change.axis, (change.heads, -1)) for t in tensors]
        return torch.cat(apart, change.axis + 1).flatten(change.axis, change.axis + 1)

    def _taken(self, x: Tensor) -> Tensor:
        """The part of a tensor that is taken apart; otherwise all of it."""
        change = self.change
        if change.stack is not None:
            if x.shape[change.stack] != len(self.parts):
                raise ValueError(f"axis {change.stack} of {list(x.shape)} has not the size {len(self.parts)}")
            return x.select(change.stack, self.part)
        if change.axis is None:
            return x
        sizes = [shape[change.axis] for shape in self.parts]
        if x.shape[change.axis] != sum(sizes):
            raise ValueError(f"axis {change.axis} of {list(x.shape)} is not {' + '.join(map(str, sizes))}")
        if any(size % change.heads for size in sizes):
            raise ValueError(f"heads = {change.heads} does not divide {' and '.join(map(str, sizes))}")
        sizes = [size // change.heads for size in sizes]
        apart = x.unflatten(change.axis, (change.heads, -1)).narrow(change.axis + 1, sum(sizes[: self.part]), sizes[self.part])
        whole: Tensor = apart.flatten(change.axis, change.axis + 1)
        return whole

    def _fitted(self, x: Tensor) -> Tensor:
        if not self.parts:
            return x
        ours = self.parts[self.part]
        if self.change.as_ours:
            if x.numel() != math.prod(ours):
                raise ValueError(f"{list(x.shape)} has not as many values as ours, {list(ours)}")
            return x.reshape(ours)
        leads = self.change.share or self.change.stack is not None
        if leads and x.dim() == len(ours) and all(n >= wanted for n, wanted in zip(x.shape, ours, strict=True)):
            return x[tuple(slice(0, n) for n in ours)]
        return x


def with_width(name: str, expected: Mapping[str, Shape]) -> str:
    """Our name; of a student with one width it may lack the width (`table` for `table@full`)."""
    if name in expected or "@" in name:
        return name
    widths = [full for full in expected if full.startswith(f"{name}@")]
    return widths[0] if len(widths) == 1 else name
