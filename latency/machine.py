"""A device as a few numbers, and the time that it takes for a list of operations.

Two forms of the roofline, because processors differ in what they overlap:

- A CPU core (`overlap` False). Loads, arithmetic and stores of one operation overlap only in part, and operations not at all:

      t = call + sum over operations ( op + row * rows + mac * MACs + read * bytes + written * bytes ) + spill

  with coefficients of their own for every kind of operation. max(compute, memory) lies between this sum and half of it; the
  sum is linear, so that non-negative least squares fits it to micro-benchmarks without a starting point, and on micro-benchmarks
  its coefficients absorb what differs.
- An accelerator with a DMA engine and a compiled graph (`overlap` True). Streams for the next operation run under the
  arithmetic of the present one, so that compute and traffic overlap over a whole component, but for attention scores that do
  not fit on the chip: a softmax waits for its row, and stalls both:

      t = call + max( sum mac * MACs, sum (read + written) * bytes ) + spill

Spill: of each matrix of scores (one head) the share that exceeds `on_chip` goes to memory and comes back, so an operation
spills scores * max(0, 1 - on_chip / tile) bytes (`OpCost.scores`, `OpCost.tile`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from snapgen_deploy.latency.cost import OpCost


@dataclass(frozen=True)
class Rate:
    """Seconds that a kind of operation takes per operation, row, MAC, byte read and byte written."""

    op: float = 0.0
    row: float = 0.0
    mac: float = 0.0
    read: float = 0.0
    written: float = 0.0


FEATURES = tuple(f.name for f in fields(Rate))


@dataclass(frozen=True)
class Machine:
    """A device. `rates` has an entry for every kind that costs anything; others are free."""

    rates: Mapping[str, Rate]
    call: float = 0.0  # seconds to start a component
    picture: float = 0.0  # seconds a picture takes beside its components
    on_chip: float = 0.0  # bytes
    spill: float = 0.0  # seconds per byte of scores beyond `on_chip`
    overlap: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Machine:
        """From `as_dict`; raises KeyError or TypeError where it is something else."""
        return cls(**{**data, "rates": {kind: Rate(**rate) for kind, rate in data["rates"].items()}})


@dataclass(frozen=True)
class Times:
    """Seconds of a component, by cause."""

    call: float
    dispatch: float  # per operation and per row
    compute: float
    traffic: float
    spill: float
    overlap: bool

    @property
    def seconds(self) -> float:
        """The whole."""
        work = max(self.compute, self.traffic) if self.overlap else self.compute + self.traffic
        return self.call + self.dispatch + work + self.spill


def spilled(op: OpCost, on_chip: float) -> float:
    """Bytes of scores that an operation moves beyond on-chip memory."""
    return op.scores * max(0.0, 1.0 - on_chip / op.tile) if op.tile else 0.0


def component_times(machine: Machine, ops: Iterable[OpCost]) -> Times:
    """The time of one run of a component; all zero for a component without operations."""
    dispatch = compute = traffic = spill = 0.0
    listed = tuple(ops)
    for op in listed:
        rate = machine.rates.get(op.kind)
        if rate is not None:
            dispatch += rate.op + rate.row * op.rows
            compute += rate.mac * op.macs
            traffic += rate.read * op.read + rate.written * op.written
        spill += spilled(op, machine.on_chip) * machine.spill
    return Times(machine.call if listed else 0.0, dispatch, compute, traffic, spill, machine.overlap)
