"""The memory of a program's constants, as lowering takes it.

XNNPACK's exporter writes the storage of a constant from its beginning, not the constant (executorch 1.4): a product with the
second half of a larger tensor gets the first half, and the file holds the whole of it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch


def with_own_storage(program: torch.export.ExportedProgram) -> list[Any]:
    """All constants of a program, after those that are part of a larger storage were replaced by copies."""
    tables: tuple[dict[str, Any], ...] = (program.state_dict, program.constants)
    for table in tables:
        for name, value in table.items():
            if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() != value.numel() * value.element_size():
                copy = value.detach().clone(memory_format=torch.contiguous_format)
                is_parameter = isinstance(value, torch.nn.Parameter)
                table[name] = torch.nn.Parameter(copy, requires_grad=value.requires_grad) if is_parameter else copy
    return [value for table in tables for value in table.values()]


@contextlib.contextmanager
def shared_by_copies(tensors: Iterable[Any]) -> Iterator[None]:
    """Within the block, `copy.deepcopy` shares these tensors instead of copying them.

    Lowering copies each partition's program, weights included, and changes no weight in place. Each has a storage of its own,
    see `with_own_storage`: a real copy of a parameter has one, too.
    """
    marked = [t for t in tensors if hasattr(t, "__dict__")]
    for tensor in marked:
        tensor.__deepcopy__ = functools.partial(_itself, tensor)
    try:
        yield
    finally:
        for tensor in marked:
            tensor.__dict__.pop("__deepcopy__", None)


def _itself(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    """The result of `copy.deepcopy`: the tensor itself."""
    return tensor
