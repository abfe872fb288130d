"""Filling, padding, counting (coremltools: iOS15/tensor_operation.py, iOS16/tensor_operation.py)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_deploy.export.mil.ops.registry import op
from snapgen_deploy.export.mil.saved.types import ValueType


@op("pad", moves=True)
def pad(x: Tensor, pad: tuple[int, ...], mode: str = "constant", constant_val: Tensor | None = None) -> Tensor:
    """Pads the last len(pad) / 2 axes, (before, after) each in order: with a constant, by reflection or by the edge."""
    pairs = [(pad[2 * i], pad[2 * i + 1]) for i in range(len(pad) // 2)]
    if len(pad) % 2 or len(pairs) > x.dim():
        raise ValueError(f"{len(pad)} numbers do not pad a tensor of rank {x.dim()}")
    if mode == "constant":
        value = 0 if constant_val is None else constant_val.item()
        return F.pad(x, [n for pair in reversed(pairs) for n in pair], value=value)
    if mode not in ("reflect", "replicate"):
        raise ValueError(f"mode {mode!r} is unknown")
    for offset, (before, after) in enumerate(pairs):
        axis = x.dim() - len(pairs) + offset
        if before or after:
            x = x.index_select(axis, _border(x.shape[axis], before, after, mode))
    return x


def _border(size: int, before: int, after: int, mode: str) -> Tensor:
    """Indices of the padded axis; any rank and type, which torch's own modes do not have."""
    index = torch.arange(-before, size + after)
    if mode == "replicate":
        return index.clamp(0, size - 1)
    if before >= size or after >= size:
        raise ValueError(f"reflection by {before}, {after} needs more than {size} cells")
    return (size - 1) - (index.abs() - (size - 1)).abs()


@op("fill")
def fill(shape: tuple[int, ...], declared: tuple[ValueType, ...], value: float = 0.0) -> Tensor:
    """A tensor of one value, of the declared type."""
    return torch.full(shape, value, dtype=torch.float64).to(declared[0].dtype.held)


@op("fill_like")
def fill_like(ref_tensor: Tensor, declared: tuple[ValueType, ...], value: float = 0.0) -> Tensor:
    """A tensor of one value in another's shape, of the declared type."""
    return torch.full(ref_tensor.shape, value, dtype=torch.float64).to(declared[0].dtype.held)


@op("shape")
def shape(x: Tensor) -> Tensor:
    """The sizes of x."""
    return torch.tensor(x.shape, dtype=torch.int32)


@op("range_1d")
def range_1d(end: Tensor, start: Tensor, step: Tensor) -> Tensor:
    """start, start + step, ... up to but without end."""
    first, stop, by = start.item(), end.item(), step.item()
    if by and (stop - first) / by <= 0:  # numpy's empty range; torch refuses it where the sign is wrong
        return torch.empty(0, dtype=start.dtype)
    return torch.arange(first, stop, by, dtype=start.dtype)


@op("band_part", moves=True)
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """x with zeros more than `lower` below and `upper` above the diagonal of its last two axes; negative keeps all."""
    below = torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-1])[None]
    band = torch.ones_like(below, dtype=torch.bool)
    if lower >= 0:
        band &= below <= lower
    if upper >= 0:
        band &= -below <= upper
    return torch.where(band, x, torch.zeros((), dtype=x.dtype))


@op("cumsum")
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Running sum along `axis`; exclusive leaves the cell itself out, reverse runs from the end."""
    y = x.flip(axis) if reverse else x
    total = y.cumsum(axis, dtype=x.dtype)
    if exclusive:
        zero = total.new_zeros([1 if i == axis % x.dim() else n for i, n in enumerate(x.shape)])
        total = torch.cat([zero, total], axis).narrow(axis, 0, x.shape[axis])
    return total.flip(axis) if reverse else total


@op("non_zero")
def non_zero(x: Tensor) -> Tensor:
    """Indices (count, rank) of the elements that are not zero, in row-major order."""
    return x.nonzero()


@op("one_hot")
def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    declared: tuple[ValueType, ...],
    axis: int = -1,
    on_value: float = 1.0,
    off_value: float = 0.0,
) -> Tensor:
    """`on_value` at each index along a new axis, `off_value` elsewhere (also where the index is out of range)."""
    axis = axis + indices.dim() + 1 if axis < 0 else axis
    places = torch.arange(one_hot_vector_size).reshape(-1, *(1,) * (indices.dim() - axis))
    hot = indices.long().unsqueeze(axis) == places
    held = declared[0].dtype.held
    return torch.where(hot, torch.tensor(on_value).to(held), torch.tensor(off_value).to(held))
