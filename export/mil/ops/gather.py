"""Gather and scatter (coremltools: scatter_gather.py of iOS15, iOS16 and iOS17).

Negative indices count from the end up to iOS 16 and are undefined from iOS 17 on; undefined and out-of-range indices are an
error here, whatever `validate_indices` says, since a phone would return anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from snapgen_deploy.export.mil.ops.registry import op

_POSITIVE_FROM = 7  # iOS 17


def _index(indices: Tensor, size: int, opset: int) -> Tensor:
    """Checked indices from 0 to size - 1."""
    index = indices.long()
    if index.numel() == 0:
        return index
    low, high = (int(v) for v in torch.aminmax(index))
    if high >= size or low < -size or (low < 0 and opset >= _POSITIVE_FROM):
        raise IndexError(f"indices {low} ... {high} are out of range for {size} cells (iOS {opset + 10} rules)")
    return torch.where(index < 0, index + size, index) if low < 0 else index


@op("gather", moves=True)
def gather(
    x: Tensor, indices: Tensor, opset: int, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """Slices of x along `axis`; the first `batch_dims` axes of x and indices run together (as tf.gather)."""
    axis = axis % x.dim()
    index = _index(indices, x.shape[axis], opset)
    if batch_dims == 0:
        picked = x.index_select(axis, index.reshape(-1))
        return picked.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))
    batch, within = index.shape[:batch_dims], index.shape[batch_dims:]
    if axis < batch_dims or x.shape[:batch_dims] != batch:
        raise ValueError(f"batch_dims {batch_dims} does not fit axis {axis}, shapes {list(x.shape)} and {list(index.shape)}")
    place = axis - batch_dims + 1  # of the gathered axis, once the batch axes are one
    flat = x.reshape(math.prod(batch), *x.shape[batch_dims:]).movedim(place, 1)  # (b, axis, rest)
    rows = index.reshape(math.prod(batch), math.prod(within))  # (b, count)
    picked = flat[torch.arange(len(rows))[:, None], rows].movedim(1, place)
    return picked.reshape((*batch, *x.shape[batch_dims:axis], *within, *x.shape[axis + 1 :]))


@op("gather_along_axis", moves=True)
def gather_along_axis(x: Tensor, indices: Tensor, opset: int, axis: int = 0, validate_indices: bool = False) -> Tensor:
    """numpy's take_along_axis: indices has x's rank."""
    return x.gather(axis, _index(indices, x.shape[axis], opset))


@op("gather_nd", moves=True)
def gather_nd(x: Tensor, indices: Tensor, opset: int, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """Slices of x at the index vectors along the last axis of `indices` (as tf.gather_nd)."""
    batch, depth = tuple(x.shape[:batch_dims]), indices.shape[-1]
    within = indices.shape[batch_dims:-1]
    flat = x.reshape(math.prod(batch), *x.shape[batch_dims:])  # (b, ...)
    places = indices.reshape(math.prod(batch), math.prod(within), depth)  # (b, count, depth)
    columns = [_index(places[..., i], flat.shape[i + 1], opset) for i in range(depth)]
    rows = torch.arange(len(flat))[:, None]
    picked = flat[(rows, *columns)]  # (b, count, rest)
    return picked.reshape((*batch, *within, *x.shape[batch_dims + depth :]))


Combine = Callable[[Tensor, tuple[Tensor, ...], Tensor], Tensor]


def _reduced(name: str) -> Combine:
    """Combine through torch's scatter reductions over flat places, so that repeated indices all count."""

    def combine(data: Tensor, places: tuple[Tensor, ...], updates: Tensor) -> Tensor:
        strides = [math.prod(data.shape[i + 1 :]) for i in range(len(places))]
        flat = sum((p * s for p, s in zip(places, strides, strict=True)), torch.zeros((), dtype=torch.int64))
        result = data.reshape(-1).scatter_reduce(0, flat.reshape(-1), updates.reshape(-1), name, include_self=True)
        return result.reshape(data.shape)

    return combine


def _put(data: Tensor, places: tuple[Tensor, ...], updates: Tensor) -> Tensor:
    result = data.clone()
    result[places] = updates
    return result


def _add(sign: int) -> Combine:
    def combine(data: Tensor, places: tuple[Tensor, ...], updates: Tensor) -> Tensor:
        return data.index_put(places, updates * sign, accumulate=True)

    return combine


def _divide(data: Tensor, places: tuple[Tensor, ...], updates: Tensor) -> Tensor:
    divisor = _reduced("prod")(torch.ones_like(data), places, updates)
    return data / divisor if data.is_floating_point() else torch.div(data, divisor, rounding_mode="trunc")


_MODES: dict[str, Combine] = {
    "update": _put,
    "add": _add(1),
    "sub": _add(-1),
    "mul": _reduced("prod"),
    "div": _divide,
    "max": _reduced("amax"),
    "min": _reduced("amin"),
}


def _combine(mode: str) -> Combine:
    if mode not in _MODES:
        raise ValueError(f"mode {mode!r} is unknown; expected {', '.join(_MODES)}")
    return _MODES[mode]


def _everywhere(shape: tuple[int, ...]) -> list[Tensor]:
    """For every element of a tensor of `shape`, its index along each axis, shaped to broadcast."""
    return [torch.arange(n).reshape(-1, *(1,) * (len(shape) - 1 - i)) for i, n in enumerate(shape)]


@op("scatter")
def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    opset: int,
    *,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """data with slices along `axis` combined with `updates` (data's shape, `axis` replaced by the indices' shape)."""
    axis = axis % data.dim()
    index = _index(indices, data.shape[axis], opset).reshape(-1)
    updates = updates.reshape(*data.shape[:axis], index.numel(), *data.shape[axis + 1 :])
    places = _everywhere(tuple(updates.shape))
    places[axis] = index.reshape(-1, *(1,) * (data.dim() - 1 - axis))
    return _combine(mode)(data, torch.broadcast_tensors(*places), updates)


@op("scatter_along_axis")
def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    opset: int,
    *,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """data combined with `updates` at take_along_axis places; updates has the shape of indices."""
    axis = axis % data.dim()
    places = _everywhere(tuple(indices.shape))
    places[axis] = _index(indices, data.shape[axis], opset)
    return _combine(mode)(data, torch.broadcast_tensors(*places), updates)


@op("scatter_nd")
def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, opset: int, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """data combined with `updates` at the index vectors along the last axis of `indices`."""
    depth = indices.shape[-1]
    rest = tuple(data.shape[depth:])
    columns = [_index(indices[..., i], data.shape[i], opset) for i in range(depth)]
    places = [c.reshape((*c.shape, *(1,) * len(rest))) for c in columns] + _everywhere(rest)
    return _combine(mode)(data, torch.broadcast_tensors(*places), updates)
