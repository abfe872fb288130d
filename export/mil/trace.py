"""Finds where NaN and infinity begin, in both modes: every result is checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from snapgen_deploy.export.mil.saved.program import Operation

What = Literal["NaN", "infinity"]
Given = Iterable[tuple[str, Any, bool]]
"""What an operation was given: parameter, value, whether it is a constant."""


@dataclass(frozen=True)
class Beginning:
    """An operation that made NaN from numbers, or infinity from finite ones; `op` is "input" (place -1) if an input has NaN."""

    what: What
    op: str
    name: str
    output: str
    place: int
    count: int  # elements, over all runs
    because: str

    def __str__(self) -> str:
        where = f"op {self.op} (name {self.name!r}, output {self.output}, number {self.place} of its function)"
        return f"{self.what} begins in {where if self.place >= 0 else f'input {self.output!r}'}: {self.because}"


class Trace:
    """Records of all runs since `PackageRunner.trace`."""

    def __init__(self) -> None:
        self._beginnings: dict[tuple[int, str, What], Beginning] = {}
        self._holding: dict[What, set[tuple[int, str]]] = {"NaN": set(), "infinity": set()}

    @property
    def beginnings(self) -> tuple[Beginning, ...]:
        """In program order."""
        return tuple(sorted(self._beginnings.values(), key=lambda b: b.place))

    def holding(self, what: What) -> int:
        """Number of operations whose results held NaN or infinity."""
        return len(self._holding[what])

    def record_input(self, name: str, x: Tensor) -> None:
        """Record an input: its NaN begin there; its infinities, such as a mask's, are intended."""
        if nan := _count(x)[0]:
            self._begin(Beginning("NaN", "input", "", name, -1, nan, "it was given NaN"))

    def record(self, operation: Operation, output: str, x: Tensor, given: Given) -> None:
        """Record a result as it is stored; `given` is read only if it is not finite."""
        nan, infinite = _count(x)
        if not nan and not infinite:
            return
        held = sorted((name, constant, *_count(value)) for name, value, constant in given)
        key = (operation.place, output)
        if nan:
            self._holding["NaN"].add(key)
            if not any(n for _, constant, n, _ in held if not constant):
                self._add(operation, output, "NaN", nan, _because(held))
        if infinite:
            self._holding["infinity"].add(key)
            if not any(n + i for *_, n, i in held):
                self._add(operation, output, "infinity", infinite, "all that it was given is finite")

    def _add(self, operation: Operation, output: str, what: What, count: int, because: str) -> None:
        self._begin(Beginning(what, operation.type, operation.name, output, operation.place, count, because))

    def _begin(self, new: Beginning) -> None:
        key = (new.place, new.output, new.what)
        before = self._beginnings.get(key)
        self._beginnings[key] = new if before is None else replace(before, count=before.count + new.count)


def _because(held: list[tuple[str, bool, int, int]]) -> str:
    for name, constant, nan, infinite in held:
        if nan or infinite:
            return f"its {'constant' if constant else 'parameter'} {name} holds {'NaN' if nan else 'infinity'}"
    return "all that it was given is finite"


def _count(value: Any) -> tuple[int, int]:
    """Numbers that are NaN and that are infinite; 0 of both for what holds no real numbers."""
    if isinstance(value, tuple | list):
        pairs = [_count(v) for v in value]
        return sum(n for n, _ in pairs), sum(i for _, i in pairs)
    if not isinstance(value, Tensor | np.ndarray | float):
        return 0, 0
    x = torch.as_tensor(value)
    if not x.is_floating_point() or math.isfinite(float(x.sum())):  # a sum is quick, and finite only where all terms are
        return 0, 0
    return int(torch.isnan(x).sum()), int(torch.isinf(x).sum())
