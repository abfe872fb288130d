"""The layers whose weights are quantised, as matrices; and the effect of a change of the weights on a layer's output.

A layer is a matrix product: of M (groups, rows, columns), which holds the weights, with columns X cut out of the input.
A change D of M changes the output by D X, so its mean square is tr(D C D^T) / rows with C = E[x x^T]: one matrix of second
moments per layer stands for all calibration inputs, exactly, whatever their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WeightLayer = nn.Linear | nn.Conv2d | nn.ConvTranspose2d


def layers_of(network: nn.Module) -> dict[str, WeightLayer]:
    """Every linear and convolution layer by its name, in the network's order: the paper quantises exactly these weights."""
    return {name: m for name, m in network.named_modules() if isinstance(m, WeightLayer)}


def matrix_of(layer: WeightLayer, weight: Tensor) -> Tensor:
    """The weight of `layer`, or one of its shape, as (groups, rows, columns)."""
    if isinstance(layer, nn.Linear):
        return weight[None]  # (1, out, in)
    if isinstance(layer, nn.ConvTranspose2d):
        return weight.flatten(1).t()[None]  # (1, out*kh*kw, in)
    return weight.reshape(layer.groups, layer.out_channels // layer.groups, -1)  # (g, out/g, in/g*kh*kw)


def columns_of(layer: WeightLayer, x: Tensor) -> Tensor:
    """The columns (groups, n, columns) of the layer's input that the matrix is multiplied by.

    Raises:
        ValueError: if it is a transposed convolution whose windows overlap: its output is not such a product.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, layer.in_features)
    if isinstance(layer, nn.ConvTranspose2d):
        if layer.stride != layer.kernel_size or layer.groups != 1:
            raise ValueError(f"transposed convolution with stride {layer.stride} and kernel {layer.kernel_size}: must be equal")
        return x.movedim(1, -1).reshape(1, -1, layer.in_channels)
    padding = tuple(int(p) for p in layer.padding)
    patches = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)  # (B, in*kh*kw, n)
    columns: Tensor = patches.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)  # (g, B*n, in/g*kh*kw)
    return columns


def moments(network: nn.Module, names: Iterable[str], run: Callable[[], None]) -> dict[str, np.ndarray]:
    """E[x x^T] (groups, columns, columns) of the named layers over all that `run` feeds the network; double precision."""
    layers = layers_of(network)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def note(name: str, x: Tensor) -> None:
        columns = columns_of(layers[name], x.detach())
        product = torch.bmm(columns.transpose(1, 2), columns).double()
        sums[name] = sums[name].add_(product) if name in sums else product
        counts[name] = counts.get(name, 0) + columns.shape[1]

    with _listening({name: layers[name] for name in names}, note):
        run()
    return {name: total.div_(counts[name]).numpy() for name, total in sums.items()}  # in place: these are gigabytes


@contextmanager
def _listening(layers: Mapping[str, WeightLayer], note: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block, call `note` with every input of the layers."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, args: note(name, args[0])

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def output_mse(change: np.ndarray, second: np.ndarray) -> float:
    """Mean square of the output's change; change (g, rows, columns), second moments (g, columns, columns).

    Rounded to nine digits, so that it does not depend on the order of summation or on the machine.
    """
    d, c = torch.from_numpy(change).double(), torch.from_numpy(second).double()
    value = float((torch.bmm(d, c) * d).sum() / (d.shape[0] * d.shape[1]))
    return float(f"{max(value, 0.0):.9g}") if value == value else value
