"""A component as a function of its inputs and of the weights that are not in memory.

A graph of it holds no value of those weights. A target converts it, whatever its size, in the memory and time of the graph
alone, and then puts a stored weight in the place of each input, reading one after the other.

A table of embeddings is another input than a matrix: it is the product of numbers and a scale for every row, both of which are
looked up first, so that a device turns only the rows in use into floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.export.base import Component, Port

SCALES = "_scale"  # ending of the input with a table's scales
_LARGEST = 127  # of an 8-bit number in a table


@dataclass(frozen=True)
class GivenWeight:
    """A weight that is an input of the graph."""

    parameter: str  # of the component's module
    name: str  # of the input
    read: Callable[[], Tensor]
    is_table: bool


def in_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A table (V, D) as 8-bit numbers (V, D) and scales (V, 1) in fp32, whose product it is.

    >>> in_rows(torch.tensor([[1.0, -0.5], [0.0, 0.0]]))[0].tolist()
    [[127, -64], [0, 0]]
    """
    numbers, scales = torch.empty(weight.shape, dtype=torch.int8), torch.empty((weight.shape[0], 1))
    for rows in range(0, weight.shape[0], 4096):  # the whole table in fp32 would be the largest tensor of all
        part = weight[rows : rows + 4096].float()
        scale = part.abs().amax(1, keepdim=True) / _LARGEST
        numbers[rows : rows + 4096] = (part / scale.clamp(min=torch.finfo(torch.float32).tiny)).round()
        scales[rows : rows + 4096] = scale
    return numbers, scales


def with_weights_given(
    component: Component, dtype: Literal["float32", "float16"], name_of: Callable[[str], str] = str, *, in_rows: bool = True
) -> tuple[Component, tuple[GivenWeight, ...]]:
    """The component with its weights on disk as further inputs of type `dtype`, and these weights in order.

    The input of a weight is called `name_of(parameter)`; that of a table's scales follows it, with `SCALES` at its end. Without
    `in_rows`, tables are inputs like others.
    """
    tables = {
        f"{place}.weight".removeprefix("."): module
        for place, module in component.module.named_modules()
        if in_rows and isinstance(module, nn.Embedding)
    }
    given = tuple(GivenWeight(name, name_of(name), read, name in tables) for name, read in component.on_disk.items())
    parameters = dict(component.module.named_parameters())
    ports, example, slots = [], [], list[str]()
    for weight in given:
        shapes = {weight.name: tuple(parameters[weight.parameter].shape)}
        slots.append(weight.parameter)
        example.append(parameters[weight.parameter].detach())
        if weight.is_table:
            owner = weight.parameter.removesuffix(".weight")
            scales = torch.ones(()).expand(parameters[weight.parameter].shape[0], 1)
            _replace(component.module, owner, _Rows(parameters[weight.parameter], scales))
            slots.append(f"{owner}.scales")
            shapes[weight.name + SCALES] = tuple(scales.shape)
            example.append(scales)
        ports += [Port(name, shape, dtype, "") for name, shape in shapes.items()]
    module = _WeightsGiven(component.module, slots, len(component.inputs)).eval()
    made = replace(
        component, module=module, inputs=(*component.inputs, *ports), example=(*component.example, *example), on_disk={}
    )
    return made, given


class _Rows(nn.Module):
    """An embedding whose rows have a scale each."""

    def __init__(self, weight: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.weight, self.scales = (nn.Parameter(x.detach(), requires_grad=False) for x in (weight, scales))

    def forward(self, ids: Tensor) -> Tensor:
        """(...) -> (..., D)."""
        return F.embedding(ids, self.weight) * F.embedding(ids, self.scales)


class _WeightsGiven(nn.Module):
    """The network with some parameters as inputs."""

    def __init__(self, module: nn.Module, parameters: list[str], inputs: int) -> None:
        super().__init__()
        self.module, self.parameters_given, self.inputs = module, parameters, inputs

    def forward(self, *given: Tensor) -> Any:
        """As the network's, of its inputs and the parameters."""
        weights: Mapping[str, Tensor] = dict(zip(self.parameters_given, given[self.inputs :], strict=True))
        return torch.func.functional_call(self.module, dict(weights), given[: self.inputs])


def _replace(module: nn.Module, place: str, other: nn.Module) -> None:
    owner, _, name = place.rpartition(".")
    setattr(module.get_submodule(owner), name, other)
