"""Reductions (coremltools: iOS15/reduction.py, iOS17/reduction.py)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snapgen_deploy.export.mil.ops.registry import Implementation, op

Reduce = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _over(function: Reduce) -> Implementation:
    """An operation with `axes` (default all) and `keep_dims` around a reduction over several axes."""

    def run(x: Tensor, axes: tuple[int, ...] | None = None, keep_dims: bool = False) -> Tensor:
        over = tuple(range(x.dim())) if axes is None else axes
        if not over:  # each element by itself: to torch, no axes are all axes
            return function(x[None], (0,), False)
        return function(x, over, keep_dims)

    return run


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in axes:
        x = x.prod(axis, keepdim=True)
    return x if keep else x.squeeze(axes)


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    return torch.trunc(x.double().mean(axes, keepdim=keep))


_REDUCTIONS: dict[str, Reduce] = {
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "reduce_log_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "reduce_log_sum_exp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
    "reduce_max": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "reduce_mean": _mean,
    "reduce_min": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "reduce_prod": _product,
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}

for _name, _function in _REDUCTIONS.items():
    op(_name)(_over(_function))


@op("reduce_argmax")
def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Index of the largest value along `axis`; of equal ones, the first."""
    return x.argmax(axis, keepdim=keep_dims)


@op("reduce_argmin")
def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Index of the smallest value along `axis`; of equal ones, the first."""
    return x.argmin(axis, keepdim=keep_dims)
