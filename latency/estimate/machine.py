"""A model of a device as a few numbers, and the time that it takes for a list of operations.

There are two forms of the roofline, because processors differ in what they overlap:

- A CPU core (`overlap` False). Loads, arithmetic and stores of one operation overlap only partly, and operations not at all:

      t = call + sum over operations ( op + row * rows + mac * MACs + read * bytes + written * bytes + spill * excess )

  with separate coefficients for every kind of operation. max(compute, memory) is between this sum and half of it. The sum is
  linear, so that non-negative least squares can fit it to micro-benchmarks without a starting point. Excess: what an operation
  reads and writes beyond the cache, max(0, read + written - weights - on_chip), mostly attention scores; and the stored weights
  of the whole component beyond the cache, because they were last read one call ago.
- An accelerator with a DMA engine and a compiled graph (`overlap` True). Data for the next operation are loaded during the
  arithmetic of the current one, so that compute and traffic overlap over a whole component. Attention scores that do not fit
  on the chip are the exception: a softmax waits for its whole row, and stalls both:

      t = call + max( sum mac * MACs, sum read * (bytes read and written, without scores) ) + spill * excess

  Excess: the part of each matrix of scores (one head) that exceeds on-chip memory is written to memory and read back,
  scores * max(0, 1 - on_chip / tile) (`OpCost.scores`, `OpCost.tile`). Without this term, no MAC rate fits the published times
  of both full and sparse attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from pydantic import StrictBool

from snapgen_deploy.latency.estimate.cost import OpCost
from snapgen_deploy.system.typed import Number


@dataclass(frozen=True)
class Rate:
    """Seconds per operation, row, MAC, byte read and byte written, for one kind of operation."""

    op: Number = 0.0
    row: Number = 0.0
    mac: Number = 0.0
    read: Number = 0.0
    written: Number = 0.0


FEATURES = tuple(f.name for f in fields(Rate))


@dataclass(frozen=True)
class Machine:
    """A model of a device. Kinds of operations without an entry in `rates` take no time."""

    rates: Mapping[str, Rate]
    call: Number = 0.0  # seconds to start a component
    picture: Number = 0.0  # seconds of a picture outside of its components
    on_chip: Number = 0.0  # bytes of cache or on-chip memory
    spill: Number = 0.0  # seconds per byte of excess
    overlap: StrictBool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as in a stored calibration."""
        return asdict(self)

    def scaled(self, factor: float) -> Machine:
        """The same machine, `factor` times slower in every respect."""
        rates = {k: Rate(*(factor * v for v in asdict(r).values())) for k, r in self.rates.items()}
        call, picture, spill = (factor * v for v in (self.call, self.picture, self.spill))
        return replace(self, rates=rates, call=call, picture=picture, spill=spill)


@dataclass(frozen=True)
class _Times:
    """Time of a component in seconds, by cause."""

    call: float
    dispatch: float  # per operation and per row
    compute: float
    traffic: float
    spill: float
    overlap: StrictBool

    @property
    def seconds(self) -> float:
        """The total."""
        work = max(self.compute, self.traffic) if self.overlap else self.compute + self.traffic
        return self.call + self.dispatch + work + self.spill


def excess(ops: Iterable[OpCost], on_chip: float, *, overlap: bool) -> float:
    """Bytes that do not fit in on-chip memory: with `overlap` those of attention scores only, else those of all tensors."""
    if overlap:
        return sum(o.scores * max(0.0, 1.0 - on_chip / o.tile) for o in ops if o.tile)
    listed = tuple(ops)
    moved = sum(max(0.0, o.read + o.written - o.weights - on_chip) for o in listed)
    return moved + max(0.0, sum(o.weights for o in listed) - on_chip)


def coefficients_of(op: OpCost) -> tuple[int, ...]:
    """The factors for the fields of `Rate`, in their order."""
    return 1, op.rows, op.macs, op.read, op.written


def component_times(machine: Machine, ops: Iterable[OpCost]) -> _Times:
    """The time of one call of a component; all zero if it has no operations.

    >>> from snapgen_deploy.latency.estimate.cost import OpCost
    >>> machine = Machine({"linear": Rate(mac=1e-9)}, call=1e-3)
    >>> round(component_times(machine, [OpCost("mm", "linear", 2_000_000, 0, 0)]).seconds, 6)
    0.003
    """
    dispatch = compute = traffic = 0.0
    listed = tuple(ops)
    for op in listed:
        rate = machine.rates.get(op.kind, Rate())
        dispatch += rate.op + rate.row * op.rows
        compute += rate.mac * op.macs
        if machine.overlap:
            traffic += rate.read * (op.read + op.written - op.scores)
        else:
            traffic += rate.read * op.read + rate.written * op.written
    spill = machine.spill * excess(listed, machine.on_chip, overlap=machine.overlap)
    return _Times(machine.call if listed else 0.0, dispatch, compute, traffic, spill, machine.overlap)
