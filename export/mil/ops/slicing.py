"""Slices (coremltools: iOS15 slice_by_index, slice_by_size, crop, sliding_windows; iOS18 slice_update)."""

from __future__ import annotations

import torch
from torch import Tensor

from snapgen_deploy.export.mil.ops.registry import op


def _ranges(
    sizes: torch.Size,
    begin: tuple[int, ...],
    end: tuple[int, ...],
    stride: tuple[int, ...],
    *,
    begin_mask: tuple[bool, ...],
    end_mask: tuple[bool, ...],
    squeeze_mask: tuple[bool, ...],
) -> list[range]:
    """The indices taken along each axis, by Python's slice rules; one index where the axis is squeezed."""
    rank = len(sizes)
    if len(begin) != rank or len(end) != rank:
        raise ValueError(f"begin and end need {rank} numbers, got {len(begin)} and {len(end)}")
    taken = []
    for i, size in enumerate(sizes):
        if squeeze_mask and squeeze_mask[i]:
            first = 0 if begin_mask and begin_mask[i] else begin[i]
            first = first + size if first < 0 else first
            if not 0 <= first < size:
                raise IndexError(f"index {begin[i]} is out of range for axis {i} of size {size}")
            taken.append(range(first, first + 1))
            continue
        start = None if begin_mask and begin_mask[i] else begin[i]
        stop = None if end_mask and end_mask[i] else end[i]
        taken.append(range(*slice(start, stop, stride[i] if stride else 1).indices(size)))
    return taken


@op("slice_by_index", moves=True)
def slice_by_index(
    x: Tensor,
    begin: tuple[int, ...],
    end: tuple[int, ...],
    stride: tuple[int, ...] = (),
    *,
    begin_mask: tuple[bool, ...] = (),
    end_mask: tuple[bool, ...] = (),
    squeeze_mask: tuple[bool, ...] = (),
) -> Tensor:
    """x[begin:end:stride] per axis; masked ends are open, squeezed axes are indexed and removed."""
    taken = _ranges(x.shape, begin, end, stride, begin_mask=begin_mask, end_mask=end_mask, squeeze_mask=squeeze_mask)
    for axis, indices in enumerate(taken):
        if indices.step > 0:
            if len(indices) != x.shape[axis]:
                x = x[(slice(None),) * axis + (slice(indices.start, max(indices.start, indices.stop), indices.step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(indices), dtype=torch.int64))
    squeezed = [i for i, squeeze in enumerate(squeeze_mask) if squeeze]
    return x.squeeze(squeezed) if squeezed else x


@op("slice_update", moves=True)
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: tuple[int, ...],
    end: tuple[int, ...],
    stride: tuple[int, ...] = (),
    *,
    begin_mask: tuple[bool, ...] = (),
    end_mask: tuple[bool, ...] = (),
    squeeze_mask: tuple[bool, ...] = (),
) -> Tensor:
    """A copy of x whose slice (as in `slice_by_index`) holds `update`."""
    taken = _ranges(x.shape, begin, end, stride, begin_mask=begin_mask, end_mask=end_mask, squeeze_mask=squeeze_mask)
    shape = [len(t) for t in taken]
    kept = [n for i, n in enumerate(shape) if not (squeeze_mask and squeeze_mask[i])]
    if list(update.shape) != kept:
        raise ValueError(f"update has shape {list(update.shape)}, the slice {kept}")
    result = x.clone()
    if all(t.step > 0 for t in taken):
        result[tuple(slice(t.start, max(t.start, t.stop), t.step) for t in taken)] = update.reshape(shape)
    else:
        axes = torch.meshgrid(*(torch.tensor(list(t), dtype=torch.int64) for t in taken), indexing="ij")
        result[axes] = update.reshape(shape)
    return result


@op("slice_by_size", moves=True)
def slice_by_size(x: Tensor, begin: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """`size` cells from `begin` per axis; -1 means all that follow."""
    if len(begin) != x.dim() or len(size) != x.dim():
        raise ValueError(f"begin and size need {x.dim()} numbers, got {len(begin)} and {len(size)}")
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        first = first + x.shape[axis] if first < 0 else first
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


@op("crop", moves=True)
def crop(x: Tensor, crop_height: tuple[int, ...], crop_width: tuple[int, ...]) -> Tensor:
    """x without the given rows and columns at either end of its last two axes."""
    (top, bottom), (left, right) = crop_height, crop_width
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


@op("sliding_windows", moves=True)
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """All windows along `axis`; the window's own axis follows it."""
    axis = axis % x.dim()
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)
