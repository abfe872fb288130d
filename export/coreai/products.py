"""Products of half-precision matrices in parts, so that what they come to does not depend on how a runtime adds.

coreai-core 1.0.0b3 on Linux adds the products of one `bmm` in half precision, one after the other, and loses digits with their
number (docs/targets/coreai.md). Attention over M keys has M of them. Here they are added over `_PRODUCTS` at a time, as further
matrices of one `bmm`, and the parts by `sum`, which is right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_PRODUCTS = 128  # that are added one after the other


def in_parts(program: torch.export.ExportedProgram, table: Callable[[], dict[Any, Any]] = dict) -> torch.export.ExportedProgram:
    """The program with every long half-precision `bmm` in parts; itself if it has none.

    `table` makes the decompositions of what the parts are written with: the converter takes no other operations.
    """
    bmm = torch.ops.aten.bmm.default
    found = [node.args[0].meta["val"] for node in program.graph.nodes if node.target == bmm]
    return program.run_decompositions({bmm: _product}).run_decompositions(table()) if any(map(_is_long, found)) else program


def _is_long(left: Tensor) -> bool:
    return left.dtype == torch.float16 and left.shape[2] > _PRODUCTS


def _product(left: Tensor, right: Tensor) -> Tensor:
    """(B, n, m) x (B, m, k) -> (B, n, k) over `_PRODUCTS` of m at a time, and what is left of m."""
    if not _is_long(left):
        return NotImplemented  # type: ignore[no-any-return]  # torch keeps the operation
    count, whole = left.shape[2] // _PRODUCTS, left.shape[2] // _PRODUCTS * _PRODUCTS
    rows = left[:, :, :whole].unflatten(2, (count, _PRODUCTS)).transpose(1, 2).flatten(0, 1)  # (B*count, n, _PRODUCTS)
    columns = right[:, :whole].unflatten(1, (count, _PRODUCTS)).flatten(0, 1)  # (B*count, _PRODUCTS, k)
    summed: Tensor = torch.bmm(rows, columns).unflatten(0, (-1, count)).sum(1)
    return summed if whole == left.shape[2] else summed + torch.bmm(left[:, :, whole:], right[:, whole:])
