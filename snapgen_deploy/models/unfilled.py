"""Networks of shapes alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import init

_FILLING = ("constant_", "kaiming_uniform_", "normal_", "ones_", "trunc_normal_", "uniform_", "xavier_uniform_", "zeros_")
_LOCK = threading.RLock()  # another thread would keep what is replaced here


@contextmanager
def without_storage() -> Iterator[None]:
    """Modules that are built in the block lie on the meta device: they have shapes and no values.

    What draws first values does nothing: on the meta device it would take most of the time of building.
    """
    with _LOCK, torch.device("meta"):
        before = {name: getattr(init, name) for name in _FILLING}
        for name in _FILLING:
            setattr(init, name, _nothing)
        try:
            yield
        finally:
            library = sys.modules.get("transformers.modeling_utils")
            theirs = {} if library is None else library.TORCH_INIT_FUNCTIONS
            for name, function in before.items():
                setattr(init, name, function)
                if theirs.get(name) is _nothing:  # imported in the block: the library would put this one back for ever
                    theirs[name] = function


def _nothing(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return tensor
