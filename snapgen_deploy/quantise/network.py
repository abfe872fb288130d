"""Applies a recipe to a student: weights become palette entries; biases, norms and modulation get tuned values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from snapgen_deploy.quantise.layers import layers_of
from snapgen_deploy.quantise.palettes import snap

Network = TypeVar("Network", bound=nn.Module)


def quantise_network(student: Network, palettes: Mapping[str, Any]) -> Network:
    """Replace the weights of the named layers by the nearest entries of their palettes, in place; returns the student.

    `palettes` has a sequence of numbers per layer, as `palettes.fit_palette` returns. The layers' biases stay.
    """
    layers = layers_of(student)
    with torch.no_grad():
        for name, palette in palettes.items():
            weight = layers[name].weight
            table = torch.tensor(palette, dtype=torch.float32).numpy()
            weight.copy_(torch.from_numpy(snap(weight.detach().numpy(), table)))
    return student


def tunable(student: nn.Module) -> dict[str, Tensor]:
    """The parameters that stay exact: biases, norms of q and k, and the modulation tables.

    The student's other norms have no parameters of their own: scale and shift come from the tables (AdaLN), so these are the
    norm parameters that the paper tunes. All are applied per channel, and few compared with the weights.
    """
    quantised = {f"{name}.weight" for name in layers_of(student)}
    return {name: p for name, p in student.named_parameters() if name not in quantised}


def load_tuned(student: Network, values: Mapping[str, Tensor]) -> Network:
    """Give the tunable parameters their tuned values, in place; returns the student."""
    with torch.no_grad():
        for name, parameter in tunable(student).items():
            parameter.copy_(values[name])
    return student
