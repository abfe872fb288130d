"""Why a reference disagrees with golden vectors: the first layer that does, and other arithmetic that agrees."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snapgen_deploy.check.gates import relative_error
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Arrays
from snapgen_deploy.families.component import ComponentSpec
from snapgen_deploy.families.variant import NO_SETTING, Variant
from snapgen_deploy.golden.vectors import GoldenCases

MOST_CHANGES = 3  # at once
_CLEARLY, _ROUNDING = 0.1, 1e-6  # what one more variant must make of an error that is more than rounding
_CLEAR = 0.5  # what the closest must at least make of the error to be told


@dataclass(frozen=True)
class Cause:
    """What was found of a component that disagrees."""

    changes: tuple[Variant, ...]  # that make it agree, or come closest
    error: float  # with them
    agrees: bool
    tried: int
    layer: str = ""  # the first module inside that disagrees, where the vectors have such

    def said(self) -> str:
        """In one line."""
        first = f"the first layer that differs is {self.layer}; " if self.layer else ""
        if not self.changes or not (self.agrees or self.error < _CLEAR):
            return f"{first}no cause found, {self.tried} variants tried"
        listed = "; ".join(f"{v.kind}: {v.theirs} (here {v.ours})" for v in self.changes)
        if not self.agrees:
            return f"{first}no cause found, {self.tried} variants tried; the closest has {listed}, error {self.error:.2g}"
        fixes = list(dict.fromkeys(v.fix for v in self.changes))
        return f"{first}it agrees to {self.error:.2g} with {listed}; {', '.join(sorted(fixes, key=NO_SETTING.__eq__))}"

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        changes = [{"kind": v.kind, "theirs": v.theirs, "ours": v.ours, "fix": v.fix} for v in self.changes]
        error = self.error if math.isfinite(self.error) else None
        return {"agrees": self.agrees, "error": error, "changes": changes, "tried": self.tried, "layer": self.layer}


def golden_error(spec: ComponentSpec, network: nn.Module, cases: Iterable[tuple[Arrays, Arrays]]) -> float:
    """Largest relative error of a network over calls and outputs; NaN where there are none."""
    errors = [
        relative_error(got[name], value)
        for inputs, expected in cases
        for got in [_run(spec, network, inputs)]
        for name, value in expected.items()
    ]
    return float(np.max(errors)) if errors else math.nan


def _run(spec: ComponentSpec, network: nn.Module, inputs: Mapping[str, np.ndarray]) -> Arrays:
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
    with torch.inference_mode():
        return {name: value.numpy() for name, value in spec.run(network, tensors).items()}


def find_cause(spec: ComponentSpec, network: nn.Module, cases: GoldenCases, limit: float, seconds: float) -> Cause:
    """Try a component's variants, alone and up to three at once, until one agrees with all calls or the time is over.

    Pairs are tried in the order of what each half does for itself.
    """
    layer = first_layer(spec, network, cases, limit)
    end, tried, variants = time.monotonic() + seconds, 0, spec.variants(network)
    best: tuple[float, tuple[Variant, ...]] = (math.inf, ())
    alone: dict[Variant, float] = {}
    hardest = _hardest(cases)
    for changes in _combinations(variants, alone):
        error = _with(spec, network, changes, hardest)
        tried += 1
        if len(changes) == 1:
            alone[changes[0]] = error
        if error < best[0]:
            best = (error, changes)
        if error <= limit and (over_all := _with(spec, network, changes, list(cases.rows()))) <= limit:
            return _refined(spec, network, cases, Cause(changes, over_all, True, tried, layer))
        if time.monotonic() > end:
            break
    return Cause(best[1], best[0], False, tried, layer)


def _refined(spec: ComponentSpec, network: nn.Module, cases: GoldenCases, cause: Cause) -> Cause:
    """The cause with one more variant where that takes nearly all of the error that is left: two GELUs differ by little."""
    rows, kinds = list(cases.rows()), {v.kind for v in cause.changes}
    more = [(*cause.changes, v) for v in spec.variants(network) if v.kind not in kinds]
    errors = {changes: _with(spec, network, changes, rows) for changes in more}
    best = min(errors, key=errors.__getitem__, default=cause.changes)
    if best == cause.changes or not errors[best] < _CLEARLY * cause.error or cause.error < _ROUNDING:
        return cause
    return replace(cause, changes=best, error=errors[best], tried=cause.tried + len(more))


def _hardest(cases: GoldenCases) -> list[tuple[Arrays, Arrays]]:
    """The first call: one that is not padded tells less of masks, so the shortest text where there is one."""
    rows = list(cases.rows())
    masked = [sum(float(value.sum()) for name, value in inputs.items() if name.endswith("mask")) for inputs, _ in rows]
    return [rows[int(np.argmin(masked))]]


def _combinations(variants: Sequence[Variant], alone: Mapping[Variant, float]) -> Iterator[tuple[Variant, ...]]:
    """Single variants, then pairs and more of different kinds; `alone` fills with the errors of single ones on the way."""
    yield from ((variant,) for variant in variants)
    for count in range(2, MOST_CHANGES + 1):
        several = (c for c in itertools.combinations(variants, count) if len({v.kind for v in c}) == count)
        yield from sorted(several, key=lambda c: sum(alone[v] if math.isfinite(alone[v]) else 1e3 for v in c))


def _with(spec: ComponentSpec, network: nn.Module, changes: Sequence[Variant], rows: Sequence[tuple[Arrays, Arrays]]) -> float:
    """The network's error with some variants; infinite where they do not fit together, or give no finite number."""
    try:
        with ExitStack() as stack:
            for variant in changes:
                stack.enter_context(variant.change(network))
            error = golden_error(spec, network, rows)
    except (RuntimeError, ValueError, IndexError):  # a number of heads or blocks that the shapes do not divide into
        return math.inf
    return error if math.isfinite(error) else math.inf


def first_layer(spec: ComponentSpec, network: nn.Module, cases: GoldenCases, limit: float) -> str:
    """The first module, in the order of their calls, whose result differs from the golden one; "" where none does.

    Raises:
        BadInput: if the vectors name a module that the reference has not, or give its result another shape.
    """
    modules, found = dict(network.named_modules()), []
    if unknown := [name for name in cases.layers if name not in modules]:
        there = ", ".join([name for name in modules if name][:12])
        raise BadInput(f"golden vectors: {spec.name}.layers.{unknown[0]}: no such module; the reference has {there}, ...")

    def compare(name: str, result: Tensor) -> None:
        got, expected = result.numpy(), cases.layers[name][:1]
        if got.size != expected.size:
            shapes = f"{list(expected.shape)}, the reference's is {list(got.shape)}"
            raise BadInput(f"golden vectors: {spec.name}.layers.{name} has shape {shapes}")
        error = relative_error(got.reshape(expected.shape), expected)
        if not error <= limit:
            found.append(f"{name} ({error:.2g})")

    with ExitStack() as hooks:
        for name in cases.layers:
            hook = modules[name].register_forward_hook(lambda module, args, result, name=name: compare(name, result))
            hooks.callback(hook.remove)
        if cases.layers:
            _run(spec, network, next(cases.rows())[0])
    return found[0] if found else ""
