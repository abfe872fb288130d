"""Matrix products (coremltools: iOS15/linear.py)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_deploy.export.mil.ops.registry import op


@op("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (*, in) times weight (out, in) transposed, plus bias (out,)."""
    return F.linear(x, weight, bias)


@op("matmul")
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Matrix product over the last two axes, the others broadcast; transposing has no effect on vectors."""
    if transpose_x and x.dim() > 1:
        x = x.transpose(-1, -2)
    if transpose_y and y.dim() > 1:
        y = y.transpose(-1, -2)
    return torch.matmul(x, y)


@op("einsum")
def einsum(values: tuple[Tensor, ...], equation: str) -> Tensor:
    """Sum of products in Einstein notation; axes of size 1 broadcast against a longer axis of the same letter.

    `nchw,nwhu->nchu` (the only product that the definition admits besides its rank 3 form) becomes one matrix product per
    n and h, without the copies that a general contraction makes.
    """
    if len(values) == 2:
        x, y = values
        left, _, rest = equation.replace(" ", "").partition(",")
        right, _, result = rest.partition("->")
        if x.dim() == 4 and _is(left, right, result, "nchw", "nwhu", "nchu"):
            if x.shape[2] == 1 and y.shape[2] == 1:  # the common case in split-einsum attention: no head axis to move
                return torch.matmul(x[:, :, 0], y[:, :, 0]).unsqueeze(2)
            return torch.matmul(x.transpose(1, 2), y.transpose(1, 2)).transpose(1, 2)
    return torch.einsum(equation, *values)


def _is(left: str, right: str, result: str, *pattern: str) -> bool:
    """Whether three terms equal the pattern up to the choice of letters."""
    letters: dict[str, str] = {}
    for term, wanted in zip((left, right, result), pattern, strict=True):
        if len(term) != len(wanted):
            return False
        for a, b in zip(term, wanted, strict=True):
            if letters.setdefault(a, b) != b:
                return False
    return len(set(letters.values())) == len(letters)
