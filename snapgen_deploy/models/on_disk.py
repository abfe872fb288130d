"""Networks too large for memory: their large tensors stay in the file, and each is read when it is needed.

Such a network has the usual modules, with stand-ins for the large parameters: tensors of the right shape that take no memory
and hold NaN only, so that whatever computes with one gives NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MOST_HELD = 4_000_000_000  # bytes of a network in fp32; a larger one stays on disk if it can
LARGE = 1 << 20  # elements of a parameter that stays in the file

ReadTensor = Callable[[], Tensor]


def stand_in(shape: tuple[int, ...]) -> Tensor:
    """NaN in `shape`, one number in memory; of a storage of its own, by which it is known again."""
    return torch.full((), math.nan).expand(shape)


@dataclass(frozen=True)
class OnDisk:
    """A network with stand-ins, and how the tensor behind each is read; in the type that it is stored in."""

    network: nn.Module
    tensors: Mapping[str, ReadTensor]  # by the parameter's name

    def of(self, module: nn.Module) -> dict[str, ReadTensor]:
        """The same for a network that was made of this one: each of its stand-ins by its name there.

        Raises:
            RuntimeError: if its large tensors are not those of this network, in another shape at most.
        """
        own = {_storage(self.network.get_parameter(name)): read for name, read in self.tensors.items()}
        found: dict[str, ReadTensor] = {}
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            read = own.get(_storage(tensor))
            if read is not None:
                found[name] = partial(_in_shape, read, tuple(tensor.shape))
            elif tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
                raise RuntimeError(f"{name} is computed from a large tensor, which is not in memory")
        return found

    def running(self) -> nn.Module:
        """The network, able to run: each large tensor is in memory in fp32 while its module runs, of tables the rows in use."""
        by_module: dict[str, dict[str, ReadTensor]] = {}
        for name, read in self.tensors.items():
            owner, _, parameter = name.rpartition(".")
            by_module.setdefault(owner, {})[parameter] = read
        for place, tensors in by_module.items():
            module = self.network.get_submodule(place)
            fill = _rows if isinstance(module, nn.Embedding) else _whole
            module.register_forward_pre_hook(partial(fill, tensors))
            module.register_forward_hook(partial(_drop, tensors), always_call=True)
        return self.network


def large_parameters(network: nn.Module, least: int = LARGE) -> Iterator[str]:
    """Names of its matrices, and the like, of at least so many elements."""
    yield from (name for name, p in network.named_parameters() if p.dim() > 1 and p.numel() >= least)


def _storage(tensor: Tensor) -> int:
    return 0 if tensor.is_meta else tensor.untyped_storage().data_ptr()


def _in_shape(read: ReadTensor, shape: tuple[int, ...]) -> Tensor:
    return read().reshape(shape)


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    setattr(module, name, nn.Parameter(value, requires_grad=False))


def _whole(tensors: Mapping[str, ReadTensor], module: nn.Module, args: tuple[Any, ...]) -> None:
    for name, read in tensors.items():
        _set(module, name, read().float())


def _rows(tensors: Mapping[str, ReadTensor], module: nn.Module, args: tuple[Any, ...]) -> None:
    """Read the rows of the ids that an embedding is given."""
    ids = args[0].unique().long()
    for name, read in tensors.items():
        stored = read()
        table = torch.from_numpy(np.zeros(tuple(stored.shape), np.float32))  # pages without a row in use take no memory
        table[ids] = stored[ids].float()
        _set(module, name, table)


def _drop(tensors: Mapping[str, ReadTensor], module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
    for name in tensors:
        _set(module, name, stand_in(tuple(getattr(module, name).shape)))
