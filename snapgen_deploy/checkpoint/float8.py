"""Weights in eight bits with scales, as numbers again: fp8 checkpoints of DeepSeek, ComfyUI, llm-compressor and others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from snapgen_deploy.checkpoint.header import TensorInfo
from snapgen_deploy.checkpoint.sources import DerivedSource, Source
from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.documents import refuse, shown

FLOAT8 = ("F8_E4M3", "F8_E5M2")
_BLOCK = 128  # rows and columns that share a scale, where there is one for each block
# Scales of the activations, and ComfyUI's mark that a file has scales.
_BESIDE = (".input_scale", ".scale_input", ".activation_scale")
_MARKS = ("scaled_fp8",)


def _scale_names(name: str) -> Iterator[str]:
    """Where a tensor's scales may be; the values are multiplied by all of them (`_inv` is the quantiser's inverse)."""
    plain, _, leaf = name.rpartition(".")
    front = f"{plain}." if plain else ""
    yield from (f"{name}_scale", f"{name}_scale_inv", f"{name}.scale", f"{front}scale_{leaf}", f"{name}.scale_{leaf}")


@dataclass(frozen=True)
class Float8Source(DerivedSource):
    """Another source whose fp8 tensors with scales are fp32. Its scales are not there any more."""

    scales: Mapping[str, str]  # of fp8 tensors

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What there is; fp8 without scales as it is."""
        held = self.source.tensors
        away = {name for name in held if name.endswith(_BESIDE) or name in _MARKS} | set(self.scales.values())
        return {name: self._info(name, info) for name, info in held.items() if name not in away}

    def _info(self, name: str, info: TensorInfo) -> TensorInfo:
        return TensorInfo(info.shape, "F32", 4 * info.elements) if name in self.scales else info

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The leading part; fp8 values times their scales."""
        part = self.source.read(name, shape)
        if name not in self.scales:
            return part
        held = self.scales[name]
        scale = self.source.read(held, self.source.tensors[held].shape).to(torch.float32)
        return part.to(torch.float32) * _spread(scale, self.source.tensors[name].shape, shape)


def _spread(scale: Tensor, whole: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """Scales for the leading part of size `shape` of a tensor."""
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.shape[0] == whole[0] and scale.numel() == whole[0]:
        return scale.reshape(-1, *([1] * (len(whole) - 1)))[: shape[0]]
    return scale.repeat_interleave(_BLOCK, 0)[: shape[0]].repeat_interleave(_BLOCK, 1)[:, : shape[1]]


def _fits(scale: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    count = math.prod(scale)
    rows = bool(whole) and bool(scale) and scale[0] == whole[0] and count == whole[0]
    return count == 1 or rows or (len(whole) == 2 and scale == tuple(math.ceil(n / _BLOCK) for n in whole))


def dequantised(path: Path, source: Source) -> tuple[Source, int]:
    """The source with numbers in the place of fp8 and scales, and how many tensors those are.

    Raises:
        BadInput: if scales are not one for the tensor, each row or each block of 128 x 128.
    """
    held = source.tensors
    scales = {}
    problems = []
    for name, info in held.items():
        if info.dtype not in FLOAT8:
            continue
        found = next((s for s in _scale_names(name) if s in held and held[s].dtype in ("F32", "F16", "BF16", "F64")), None)
        if found is None:
            continue
        if not _fits(held[found].shape, info.shape):
            got = f"{list(held[found].shape)} for {list(info.shape)}"
            problems.append(
                f"{shown(found)} has shape {got}, expected one scale, one a row or one a block of {_BLOCK} x {_BLOCK}"
            )
        scales[name] = found
    refuse(f"checkpoint {path}", problems)
    return (Float8Source(source, scales), len(scales)) if scales else (source, 0)


def refuse_without_scales(path: Path, names: list[str]) -> None:
    """Refuse fp8 tensors that have no scales.

    Raises:
        BadInput: if there are any.
    """
    if names:
        many = "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"
        raise BadInput(
            f"checkpoint {path}: {many} in fp8 without scales, such as {shown(names[0])}; "
            f"expected '{names[0].rpartition('.')[2][:40]}_scale' beside it, or weights in bf16, fp16 or fp32"
        )
