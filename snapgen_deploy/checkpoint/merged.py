"""Adds LoRA to the weights that it belongs to, when they are read: in fp32, and of a width's part only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from snapgen_deploy.checkpoint.header import FLOATS, TensorInfo
from snapgen_deploy.checkpoint.lora import Adapter, Update
from snapgen_deploy.checkpoint.sources import DerivedSource, Source
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.names import STUDENT, TEXT_ENCODER
from snapgen_deploy.system.documents import in_one_line, shown

# Fronts of names in single files: of the student, whatever the checkpoint calls it, and kohya's of text encoders.
_STUDENT = ("transformer", "unet", STUDENT, "denoiser", "model")
_KOHYA = {"te_": f"{TEXT_ENCODER}_", "te1_": f"{TEXT_ENCODER}_", "te2_": f"{TEXT_ENCODER}_2_"}


@dataclass(frozen=True)
class MergedSource(DerivedSource):
    """Another source with adapters added: their weights are fp32."""

    updates: Mapping[str, Sequence[tuple[Adapter, Update]]]  # by the source's names

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What there is."""
        changed = {
            name: TensorInfo(i.shape, "F32", 4 * i.elements) for name in self.updates for i in [self.source.tensors[name]]
        }
        return {**self.source.tensors, **changed}

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The leading part: that of the weight, plus that of each update."""
        part = self.source.read(name, shape)
        if name not in self.updates:
            return part
        total = torch.empty(part.shape, dtype=torch.float32).copy_(part)
        for adapter, update in self.updates[name]:
            _add(total, adapter, update)
        return total


def _add(total: Tensor, adapter: Adapter, update: Update) -> None:
    """Add the leading part of one update in place; one of its matrices is held at a time, in fp32."""
    held = adapter.source
    a = held.read(update.a, held.tensors[update.a].shape).to(torch.float32)
    b = held.read(update.b, held.tensors[update.b].shape).to(torch.float32).flatten(1)
    if update.transposed:
        left, right = a.T, b.T
    else:
        left, right = b, a
    if total.dim() == 4:
        right = right[tuple(slice(0, n) for n in (right.shape[0], *total.shape[1:]))]
    flat = total.flatten(1)
    flat.addmm_(left[: total.shape[0]], right.flatten(1)[:, : flat.shape[1]], alpha=update.scale * adapter.strength)


def merged(source: Source, adapters: Sequence[Adapter]) -> tuple[Source, list[tuple[Adapter, list[Update]]]]:
    """The source with the updates that belong to its tensors, and for each adapter those that belong to none of them."""
    by_name: dict[str, list[tuple[Adapter, Update]]] = {}
    left: list[tuple[Adapter, list[Update]]] = []
    finder = _Finder(source.tensors)
    for adapter in adapters:
        rest = []
        for update in adapter.updates:
            name = finder.weight_of(update.module)
            if name is None:
                rest.append(update)
            else:
                by_name.setdefault(name, []).append((adapter, update))
        left.append((adapter, rest))
    _check_shapes(source.tensors, by_name)
    return (MergedSource(source, by_name) if by_name else source), left


def refuse_left(left: Sequence[tuple[Adapter, Sequence[Update]]], known: Mapping[str, TensorInfo]) -> None:
    """Refuse adapters with updates that belong to no tensor.

    Raises:
        BadInput: if there are any; the message names the first ones.
    """
    for adapter, rest in left:
        if rest:
            total = len(adapter.updates)
            modules = [f"{shown(update.module)} of shape {list(update.shape)}" for update in rest]
            some = next((name for name, info in known.items() if len(info.shape) == 2), "")
            head = f"LoRA {adapter.path}: is of another network, no weights for {len(rest)} of its {total} modules"
            raise BadInput(in_one_line(head, modules, f"; the checkpoint has names such as {shown(some)}"))


def _check_shapes(tensors: Mapping[str, TensorInfo], by_name: Mapping[str, Sequence[tuple[Adapter, Update]]]) -> None:
    problems: dict[Path, list[str]] = {}
    for name, updates in by_name.items():
        info = tensors[name]
        for adapter, update in updates:
            if info.dtype not in FLOATS:
                problems.setdefault(adapter.path, []).append(f"{shown(name)} has dtype {info.dtype}")
            elif info.shape != update.shape:
                said = f"{shown(name)} is {list(info.shape)}, the LoRA's {list(update.shape)}"
                problems.setdefault(adapter.path, []).append(said)
    for path, found in problems.items():
        raise BadInput(in_one_line(f"LoRA {path}: is of another network", found))


class _Finder:
    """Finds the weight that a module's name means: names agree, or all but their fronts, or all but dots."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self._names = {name.removesuffix(".weight"): name for name in tensors if name.endswith(".weight")}
        self._ends: dict[str, list[str]] = {}
        self._flat: dict[str, list[str]] = {}
        for module in self._names:
            parts = module.split(".")
            for depth in range(len(parts)):
                self._ends.setdefault(".".join(parts[depth:]), []).append(module)
                self._flat.setdefault("_".join(parts[depth:]), []).append(module)

    def weight_of(self, module: str) -> str | None:
        """The tensor's name; None if there is none, or several might be meant."""
        front, _, rest = module.partition(".")
        candidates = [module, *([rest] if front in _STUDENT and rest else [])]
        for candidate in candidates:
            if candidate in self._names:
                return self._names[candidate]
        for candidate in candidates:
            if (found := self._only(self._ends.get(candidate, ()), front)) is not None:
                return found
        if "." in module:
            return None
        flat = [module.removeprefix(f"{name}_") for name in _STUDENT if module.startswith(f"{name}_")]
        flat += [ours + module.removeprefix(theirs) for theirs, ours in _KOHYA.items() if module.startswith(theirs)]
        named = next((name for name in (*_STUDENT, *_KOHYA) if module.startswith(name)), "")
        front = TEXT_ENCODER if named in _KOHYA else named
        return self._only([name for candidate in flat or [module] for name in self._flat.get(candidate, ())], front)

    def _only(self, modules: Sequence[str], front: str) -> str | None:
        """The weight of the only module; `front` may say that it is the student's or a text encoder's."""
        fitting = [m for m in modules if front not in _STUDENT or not m.startswith(TEXT_ENCODER)]
        fitting = [m for m in fitting if not front.startswith(TEXT_ENCODER) or m.startswith(TEXT_ENCODER)]
        return self._names[fitting[0]] if len(fitting) == 1 else None
