"""The two modes of running a program, and the statistics of the second.

`fp32`: is the graph right? Nothing is rounded. `device`: what will the phone draw? After every operation that the program
declares fp16 the result is rounded to half precision (nearest even, overflow to infinity), while the arithmetic inside an
operation accumulates in float32. Real hardware may round inside composite operations too, so this is a model of fp16 storage,
not of one chip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

Mode = Literal["fp32", "device"]
FP16_MAX = 65504.0
"""Largest finite half-precision number, IEEE 754-2008 binary16."""
_PIECE = 1 << 19  # elements that are rounded and counted at a time, so that they are read from memory once


@dataclass(frozen=True)
class OpStat:
    """Statistics of one operation's fp16 result, over all runs so far. Shares are of its elements."""

    op: str
    output: str
    place: int  # position in the function; -1 for a program input
    elements: int  # counted over runs
    largest: float  # largest finite magnitude before rounding
    overflow: int  # elements that are infinite in half precision although all inputs were finite
    nan: int
    infinite: int  # elements that were infinite before rounding
    vanished: int  # elements that are nonzero in float32 and zero in half precision
    emptied: int  # runs in which every nonzero element vanished

    @property
    def tightness(self) -> float:
        """Largest magnitude relative to the largest half-precision number."""
        return self.largest / FP16_MAX

    @property
    def underflow(self) -> float:
        """Share of elements that underflowed to zero."""
        return self.vanished / self.elements if self.elements else 0.0

    def __str__(self) -> str:
        return (
            f"{self.op} {self.output}: largest {self.largest:.6g} ({self.tightness:.2%} of {FP16_MAX:.0f}), "
            f"overflowed {self.overflow}, NaN {self.nan}, to zero {self.underflow:.2%}"
        )

    def merged(self, other: OpStat) -> OpStat:
        """Both runs of the same operation together."""
        return replace(
            self,
            elements=self.elements + other.elements,
            largest=max(self.largest, other.largest),
            overflow=self.overflow + other.overflow,
            nan=self.nan + other.nan,
            infinite=self.infinite + other.infinite,
            vanished=self.vanished + other.vanished,
            emptied=self.emptied + other.emptied,
        )


@dataclass(frozen=True)
class RunReport:
    """Statistics of a run, one entry per operation that computes fp16 values, in program order."""

    mode: Mode
    runs: int
    ops: tuple[OpStat, ...]

    def tightest(self, count: int = 5) -> tuple[OpStat, ...]:
        """The `count` operations that come closest to (or go beyond) the half-precision range."""
        return tuple(sorted(self.ops, key=lambda s: (s.overflow == 0, -s.largest))[:count])

    @property
    def overflowed(self) -> bool:
        """Whether any result overflowed when it was stored."""
        return any(s.overflow for s in self.ops)

    @property
    def has_nan(self) -> bool:
        """Whether any result was not a number."""
        return any(s.nan for s in self.ops)

    @property
    def emptied(self) -> bool:
        """Whether a result that was not all zero became zero altogether."""
        return any(s.emptied for s in self.ops)

    @property
    def finite(self) -> bool:
        """At least one run was recorded, in device mode, without overflow or NaN."""
        return self.mode == "device" and self.runs > 0 and not self.overflowed and not self.has_nan

    @property
    def clean(self) -> bool:
        """`finite`, and no whole result vanished."""
        return self.finite and not self.emptied


@dataclass(frozen=True)
class NamedResult:
    """Which result it is."""

    op: str
    output: str
    place: int  # as in `OpStat`
    shared: bool = True  # whether its memory may hold something else that is still needed


class Precision(Protocol):
    """How a result that the program declares fp16 is stored."""

    mode: Mode

    def settle(self, x: Tensor, made: NamedResult, finite: Callable[[], bool] = lambda: False) -> Tensor:
        """The result as it is stored; `finite` returns whether all arguments of the operation are finite."""
        ...

    def report(self, runs: int) -> RunReport:
        """The statistics so far."""
        ...


class Fp32:
    """Nothing is rounded, nothing recorded."""

    mode: Mode = "fp32"

    def settle(self, x: Tensor, made: NamedResult, finite: Callable[[], bool] = lambda: False) -> Tensor:
        """The result itself."""
        return x

    def report(self, runs: int) -> RunReport:
        """No statistics."""
        return RunReport("fp32", runs, ())


class Device:
    """Rounds to half precision and records how close each operation comes to its limits."""

    mode: Mode = "device"

    def __init__(self) -> None:
        self._stats: dict[tuple[int, str], OpStat] = {}
        self._half = torch.empty(_PIECE, dtype=torch.float16)  # memory that is new takes longer than what is computed in it
        self._bits = torch.empty(_PIECE, dtype=torch.int16)

    def settle(self, x: Tensor, made: NamedResult, finite: Callable[[], bool] = lambda: False) -> Tensor:
        """`x` rounded to half precision, still held as float32; in its own memory unless that is shared.

        An infinity from an infinity, such as a mask's, is intended; from finite arguments it is an overflow, even if float32
        overflows, too (a division by a value that underflowed).
        """
        stored = x.clone() if made.shared else x
        flat = in_memory_order(stored)
        if flat is None:
            stored = stored.contiguous()
            flat = stored.view(-1)
        stat = OpStat(made.op, made.output, made.place, 0, 0.0, 0, 0, 0, 0, 0)
        nonzero = 0  # before rounding
        for piece in flat.split(_PIECE) if flat.numel() else ():
            found, there = self._rounded(piece, made)
            stat, nonzero = stat.merged(found), nonzero + there
        stat = replace(stat, emptied=int(nonzero > 0 and stat.vanished == nonzero))
        if stat.infinite and finite():
            stat = replace(stat, overflow=stat.overflow + stat.infinite)
        key = (made.place, made.output)
        self._stats[key] = self._stats[key].merged(stat) if key in self._stats else stat
        return stored

    def _rounded(self, x: Tensor, made: NamedResult) -> tuple[OpStat, int]:
        """Round a piece in place; its statistics, and how many of its elements were not zero before."""
        half, bits = self._half[: x.numel()], self._bits[: x.numel()]
        half.copy_(x)
        low, high = (float(v) for v in torch.aminmax(x))
        largest, overflow, nan, infinite = max(-low, high), 0, 0, 0
        if not largest <= FP16_MAX:  # also when NaN: only then look at every element
            finite = torch.isfinite(x)
            nan = int(torch.isnan(x).sum())
            infinite = x.numel() - int(finite.sum()) - nan
            overflow = int((finite & torch.isinf(half)).sum())
            inside = x[finite].abs()
            largest = float(inside.max()) if inside.numel() else 0.0
        torch.bitwise_left_shift(half.view(torch.int16), 1, out=bits)  # drops the sign: a zero may have one
        after = int(np.count_nonzero(bits.numpy()))  # as integers: several times faster than as real numbers
        before = after if after == x.numel() else int(torch.count_nonzero(x.view(torch.int32) << 1))
        x.copy_(half)
        counts = (overflow, nan, infinite, before - after, 0)
        return OpStat(made.op, made.output, made.place, x.numel(), largest, *counts), before

    def report(self, runs: int) -> RunReport:
        """Everything recorded since opening."""
        return RunReport("device", runs, tuple(self._stats[key] for key in sorted(self._stats)))


def in_memory_order(x: Tensor) -> Tensor | None:
    """All elements of `x` as a vector in the same memory; None if there are gaps between them, or some are the same.

    >>> in_memory_order(torch.tensor([[1, 2], [3, 4]]).t()).tolist()
    [1, 2, 3, 4]
    """
    order = sorted(range(x.dim()), key=lambda axis: (x.stride(axis), x.shape[axis]), reverse=True)
    turned = x.permute(order)
    return turned.view(-1) if turned.is_contiguous() else None


def precision_for(mode: Mode) -> Precision:
    """A new precision object for `mode`.

    Raises:
        KeyError: if the mode is unknown.
    """
    makers: dict[str, type[Fp32] | type[Device]] = {"fp32": Fp32, "device": Device}
    return makers[mode]()
