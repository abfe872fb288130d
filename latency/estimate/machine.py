"""A model of a device as a few numbers, and the time that it takes for a list of operations.

There are two forms of the roofline, because processors differ in what they overlap:

- A CPU core (`overlap` False). Loads, arithmetic and stores of one operation overlap only partly, and operations not at all:

      t = call + sum over operations ( op + row * rows + mac * MACs + read * bytes + written * bytes + spill * excess )

  with separate coefficients for every kind of operation. max(compute, memory) is between this sum and half of it. The sum is
  linear, so that non-negative least squares can fit it to micro-benchmarks without a starting point. Excess: what an operation
  reads and writes beyond the cache, max(0, read + written - weights - on_chip), mostly attention scores; and the stored weights
  of the whole component beyond the cache, because they were last read one call ago.
- An accelerator with a DMA engine and a compiled graph (`overlap` True). Activations and weights of the next operation are
  loaded during the arithmetic of the current one, so that compute and traffic overlap over a whole component. What exceeds
  on-chip memory is the exception, and stalls all:

      t = call + max( sum mac * MACs, sum read * (bytes of activations read and written, without scores), memory * weights )
          + spill * excess + memory * again

  - Weights: bytes of stored numbers, once a call, at the width in which they are multiplied. An engine that does not stream a
    palette reads the decoded numbers (https://ane-guide.readthedocs.io, chapter 7).
  - Excess: the part of each matrix of scores (one head) that exceeds on-chip memory is written to memory and read back,
    scores * max(0, 1 - on_chip / tile) (`OpCost.scores`, `OpCost.tile`): a softmax waits for its whole row. Without this term,
    no MAC rate fits the published times of both full and sparse attention.
  - Again: if neither the weights nor the activations of a product fit on the chip, the larger operand is read once for every
    part of the smaller one that fits: larger * max(0, smaller / on_chip - 1). On an M4, products whose operands exceed on-chip
    memory run 30 % slower (https://maderix.substack.com/p/inside-the-m4-apple-neural-engine-615), so that these reads do not
    hide behind arithmetic.
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
    memory: Number = 0.0  # with `overlap`: seconds per byte of weights, and of operands read again
    overlap: StrictBool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as in a stored calibration."""
        return asdict(self)

    def scaled(self, factor: float) -> Machine:
        """The same machine, `factor` times slower in every respect."""
        rates = {k: Rate(*(factor * v for v in asdict(r).values())) for k, r in self.rates.items()}
        call, picture, spill, memory = (factor * v for v in (self.call, self.picture, self.spill, self.memory))
        return replace(self, rates=rates, call=call, picture=picture, spill=spill, memory=memory)


@dataclass(frozen=True)
class _Times:
    """Time of a component in seconds, by cause."""

    call: float
    dispatch: float  # per operation and per row
    compute: float
    traffic: float
    weights: float  # from main memory, with `overlap`
    waiting: float  # for main memory: excess, operands read again
    overlap: StrictBool

    @property
    def seconds(self) -> float:
        """The total."""
        work = max(self.compute, self.traffic, self.weights) if self.overlap else self.compute + self.traffic
        return self.call + self.dispatch + work + self.waiting


def excess(ops: Iterable[OpCost], on_chip: float, *, overlap: bool) -> float:
    """Bytes that do not fit in on-chip memory: with `overlap` those of attention scores only, else those of all tensors."""
    if overlap:
        return sum(o.scores * max(0.0, 1.0 - on_chip / o.tile) for o in ops if o.tile)
    listed = tuple(ops)
    moved = sum(max(0.0, o.read + o.written - o.weights - on_chip) for o in listed)
    return moved + max(0.0, sum(o.weights for o in listed) - on_chip)


def read_again(op: OpCost, on_chip: float) -> float:
    """Bytes that a product with stored weights reads more than once."""
    smaller, larger = sorted((op.weights, op.read - op.weights))
    return larger * max(0.0, smaller / on_chip - 1.0) if op.macs else 0.0


def streamed(op: OpCost) -> int:
    """Bytes of activations read and written, without attention scores: what an accelerator moves during arithmetic."""
    return op.read + op.written - op.scores - op.weights


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
            traffic += rate.read * streamed(op)
        else:
            traffic += rate.read * op.read + rate.written * op.written
    waiting = machine.spill * excess(listed, machine.on_chip, overlap=machine.overlap)
    if machine.overlap:
        waiting += machine.memory * sum(read_again(o, machine.on_chip) for o in listed)
    weights = machine.memory * sum(o.weights for o in listed)
    return _Times(machine.call if listed else 0.0, dispatch, compute, traffic, weights, waiting, machine.overlap)
