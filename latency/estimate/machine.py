"""A device as a few numbers, and the time that it takes for a list of operations.

Two forms of the roofline, because processors differ in what they overlap:

- A CPU core (`overlap` False). Loads, arithmetic and stores of one operation overlap only in part, and operations not at all:

      t = call + sum over operations ( op + row * rows + mac * MACs + read * bytes + written * bytes + spill * excess )

  with coefficients of their own for every kind of operation. max(compute, memory) lies between this sum and half of it; the
  sum is linear, so that non-negative least squares fits it to micro-benchmarks without a starting point. Excess: what an
  operation reads and writes beyond the cache, max(0, read + written - weights - on_chip), attention scores being its largest
  part; and the stored weights of the whole component beyond the cache, for they were last read one call ago.
- An accelerator with a DMA engine and a compiled graph (`overlap` True). Streams for the next operation run under the
  arithmetic of the present one, so that compute and traffic overlap over a whole component, but for attention scores that do
  not fit on the chip: a softmax waits for its row, and stalls both:

      t = call + max( sum mac * MACs, sum read * (bytes read and written that are no scores) ) + spill * excess

  Excess: of each matrix of scores (one head) the share that exceeds on-chip memory goes to memory and comes back,
  scores * max(0, 1 - on_chip / tile) (`OpCost.scores`, `OpCost.tile`). Without it no MAC rate explains the published times of
  full and sparse attention together.
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
    """Seconds that a kind of operation takes per operation, row, MAC, byte read and byte written."""

    op: Number = 0.0
    row: Number = 0.0
    mac: Number = 0.0
    read: Number = 0.0
    written: Number = 0.0


FEATURES = tuple(f.name for f in fields(Rate))


@dataclass(frozen=True)
class Machine:
    """A device. `rates` has an entry for every kind that costs anything; others are free."""

    rates: Mapping[str, Rate]
    call: Number = 0.0  # seconds to start a component
    picture: Number = 0.0  # seconds a picture takes beside its components
    on_chip: Number = 0.0  # bytes
    spill: Number = 0.0  # seconds per byte of excess
    overlap: StrictBool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain data, which a stored calibration holds."""
        return asdict(self)

    def scaled(self, factor: float) -> Machine:
        """The same machine, `factor` times slower in everything."""
        rates = {k: Rate(*(factor * v for v in asdict(r).values())) for k, r in self.rates.items()}
        call, picture, spill = (factor * v for v in (self.call, self.picture, self.spill))
        return replace(self, rates=rates, call=call, picture=picture, spill=spill)


@dataclass(frozen=True)
class _Times:
    """Seconds of a component, by cause."""

    call: float
    dispatch: float  # per operation and per row
    compute: float
    traffic: float
    spill: float
    overlap: StrictBool

    @property
    def seconds(self) -> float:
        """The whole."""
        work = max(self.compute, self.traffic) if self.overlap else self.compute + self.traffic
        return self.call + self.dispatch + work + self.spill


def excess(ops: Iterable[OpCost], on_chip: float, *, overlap: bool) -> float:
    """Bytes a component moves beyond on-chip memory: of attention scores where the rest streams (`overlap`), else of all."""
    if overlap:
        return sum(o.scores * max(0.0, 1.0 - on_chip / o.tile) for o in ops if o.tile)
    listed = tuple(ops)
    moved = sum(max(0.0, o.read + o.written - o.weights - on_chip) for o in listed)
    return moved + max(0.0, sum(o.weights for o in listed) - on_chip)


def coefficients_of(op: OpCost) -> tuple[int, ...]:
    """What the coefficients of `Rate` are multiplied with, in their order."""
    return 1, op.rows, op.macs, op.read, op.written


def component_times(machine: Machine, ops: Iterable[OpCost]) -> _Times:
    """The time of one run of a component; all zero for a component without operations."""
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
