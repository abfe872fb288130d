"""Networks of shapes alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import init

_FILLING = ("constant_", "kaiming_uniform_", "normal_", "ones_", "trunc_normal_", "uniform_", "xavier_uniform_", "zeros_")


@contextmanager
def without_storage() -> Iterator[None]:
    """Modules that are built in the block lie on the meta device: they have shapes and no values.

    What draws first values leaves such tensors alone: it would take most of the time of building. It fills all others as ever,
    also where a library that is imported in the block keeps it.
    """
    before = {name: getattr(init, name) for name in _FILLING}
    for name, function in before.items():
        setattr(init, name, _with_values(function))
    try:
        with torch.device("meta"):
            yield
    finally:
        for name, function in before.items():
            setattr(init, name, function)


def _with_values(fill: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same for tensors that have values; a no-op for others."""

    @functools.wraps(fill)
    def filled(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return tensor if tensor.is_meta else fill(tensor, *args, **kwargs)

    return filled
