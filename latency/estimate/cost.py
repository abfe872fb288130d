"""The cost of a network, operation by operation: multiply-accumulates, bytes moved, attention scores, dispatches.

The network is the rewritten component that the targets export. It runs once on torch's meta device, where tensors have shapes
but no data, under a dispatch mode that sees every aten operation. Full scale at 1024 x 1024 pixels takes seconds and no memory.
Every tensor that an operation reads or writes counts once, at `element` bytes per number (2 for fp16, 4 for fp32).

Three conventions bring the count close to what runtimes execute (onnxruntime and XNNPACK do all three): transposes are copies,
unless a product takes the result and swaps its last two axes itself; slices and concatenations are copies; operations on stored
tensors only are folded when the file is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from snapgen_deploy.export.base import Component
from snapgen_deploy.latency.estimate.cost_ops import (
    FREE,
    PRODUCTS,
    RESHAPES,
    SPLITS,
    TRANSPOSES,
    OpKind,
    kind_of,
    macs_of,
    rows,
    rows_of,
)


@dataclass(frozen=True)
class OpCost:
    """The cost of one operation.

    `scores` are the bytes of attention scores among those read and written (outputs of q k^T, inputs and outputs of the
    softmax, inputs of the product with v), `tile` the bytes of one matrix of scores. For `rows` see `cost_ops.rows_of`. All
    figures of a view are 0.
    """

    name: str  # aten operation
    kind: OpKind
    macs: int
    read: int  # bytes, with weights
    written: int  # bytes
    rows: int = 0
    weights: int = 0  # bytes of stored tensors among those read
    scores: int = 0  # bytes
    tile: int = 0  # bytes


@dataclass(frozen=True)
class Total:
    """The sum over some operations; bytes as in `OpCost`."""

    ops: int  # dispatched operations, without views
    macs: int
    read: int
    written: int
    weights: int
    scores: int


def total(ops: Iterable[OpCost]) -> Total:
    """Add up the operations of a component."""
    listed = list(ops)
    sums = (sum(getattr(o, field) for o in listed) for field in ("macs", "read", "written", "weights", "scores"))
    return Total(sum(o.kind != "view" for o in listed), *sums)


def trace_costs(component: Component, element: int = 4) -> tuple[OpCost, ...]:
    """The operations of a component that a runtime dispatches, in order; `element` is the bytes per number on the device.

    Raises:
        UnknownOperation: for an operation without a rule.
    """
    return trace_module(component.module, component.example, element)


def trace_module(module: nn.Module, example: Sequence[Tensor], element: int = 4) -> tuple[OpCost, ...]:
    """`trace_costs` for any module. Its tensors and the example may be on any device and are not changed.

    >>> linear = trace_module(nn.Linear(64, 32), [torch.zeros(10, 64)])
    >>> [(o.kind, o.macs, o.weights) for o in linear]
    [('linear', 20480, 8320)]

    Raises:
        UnknownOperation: for an operation without a rule.
    """
    stored = {n: t.detach().to("meta") for n, t in (*module.named_parameters(), *module.named_buffers())}
    inputs = tuple(t.to("meta") for t in example)
    with torch.no_grad(), _Recorder(stored.values(), element) as recorder:
        functional_call(module, stored, inputs)
    return tuple(recorder.found)


class _Recorder(TorchDispatchMode):
    """Records every operation. Tensors are identified by `id`, therefore all are kept until the end."""

    def __init__(self, stored: Iterable[Tensor], element: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.element = element
        self.found: list[OpCost] = []
        self.kept: list[Tensor] = list(stored)
        self.constants = {id(t) for t in self.kept}
        self.waiting: dict[int, Tensor] = {}  # id of a transposed view that was not copied so far -> its source
        self.maker: dict[int, int] = {}  # id of a tensor -> index in `found` of the operation that computed it

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and record its cost."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.removesuffix("_")  # in place: torch's own `rms_norm` has such an addition
        inputs = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        outputs = [o for o in tree_leaves(out) if isinstance(o, Tensor)]
        self.kept += outputs
        if not inputs or all(id(t) in self.constants for t in inputs):
            self.constants.update(id(o) for o in outputs)
        elif name in TRANSPOSES:
            self._transpose(name, args, outputs[0])
        else:
            self._materialise(inputs, swapped_too=name not in PRODUCTS)
            if name in SPLITS:
                axis = args[2] if len(args) > 2 else (kwargs or {}).get("dim", 0)
                for part in outputs:
                    self._note("slice", (args[0], axis), inputs, part)
            elif name in FREE or name in RESHAPES:
                self._rename(inputs[0], outputs[0])
                if name in RESHAPES:
                    self.found.append(OpCost(name, "view", 0, 0, 0))
            else:
                self._note(name, args, inputs, outputs[0])
        return out

    def _bytes(self, tensors: Iterable[Tensor]) -> int:
        return sum(t.numel() for t in tensors) * self.element

    def _rename(self, source: Tensor, view: Tensor) -> None:
        if id(source) in self.maker:
            self.maker[id(view)] = self.maker[id(source)]

    def _transpose(self, name: str, args: Sequence[Any], out: Tensor) -> None:
        self._materialise([args[0]], swapped_too=True)
        self._rename(args[0], out)
        axes = args[1] if name == "permute" else args[1:]
        if any(args[0].shape[a] > 1 for a in axes):
            self.waiting[id(out)] = args[0]

    def _materialise(self, inputs: Sequence[Tensor], *, swapped_too: bool) -> None:
        """Record a copy for every transposed input; a product takes one with only its last two axes swapped as it is."""
        for t in inputs:
            source = self.waiting.get(id(t))
            if source is None or not (swapped_too or source.shape[:-2] != t.shape[:-2]):
                continue
            del self.waiting[id(t)]
            moved = self._bytes([t])
            self.found.append(OpCost("transpose", "transpose", 0, moved, moved, rows(t)))

    def _note(self, name: str, args: Sequence[Any], inputs: Sequence[Tensor], out: Tensor) -> None:
        kind = kind_of(name, args, lambda t: id(t) in self.constants)
        weights = self._bytes(t for t in inputs if id(t) in self.constants)
        read = self._bytes([out] if name in ("slice", "select", "embedding") else inputs)  # these read only what they return
        counts = (macs_of(name, args, out), read, self._bytes([out]), rows_of(name, args, inputs, out), min(weights, read))
        op = OpCost(name, kind, *counts)
        if kind == "softmax":
            tile = self._tile(out, args[1])
            op = replace(op, scores=op.read + op.written, tile=tile)
            self._mark_scores(inputs[0], tile)
        elif kind == "product" and (made := self._made_by(args[-2], args[-1])) is not None and made.kind == "softmax":
            op = replace(op, scores=made.written, tile=made.tile)
        self.maker[id(out)] = len(self.found)
        self.found.append(op)

    def _made_by(self, *tensors: Tensor) -> OpCost | None:
        """The softmax that computed one of the tensors, else None."""
        makers = [self.found[self.maker[id(t)]] for t in tensors if id(t) in self.maker]
        return next((m for m in makers if m.kind == "softmax"), None)

    def _tile(self, scores: Tensor, keys: int) -> int:
        """Bytes of one matrix of scores; `keys` is the axis of the keys, the last other axis is that of the queries."""
        keys %= scores.dim()
        queries = scores.dim() - (2 if keys == scores.dim() - 1 else 1)
        return self._bytes([scores]) * scores.shape[keys] * scores.shape[queries] // max(1, scores.numel())

    def _mark_scores(self, scores: Tensor, tile: int) -> None:
        """Mark the product that wrote the scores, and the addition of a mask between it and the softmax."""
        index = self.maker.get(id(scores), -1)
        while index >= 0 and self.found[index].kind in ("view", "elementwise", "product"):
            op = self.found[index]
            if op.kind != "view":
                scored = op.written * (2 if op.kind == "elementwise" else 1)
                self.found[index] = replace(op, scores=scored, tile=tile)
            if op.kind == "product":
                return
            index -= 1  # there are only reshapes between a product and the addition after it
