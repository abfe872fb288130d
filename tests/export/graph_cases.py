"""Tiny components that the Core ML and ExecuTorch tests export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from snapgen_deploy.export.base import Arrays, Component, Port
from snapgen_deploy.export.coreml.target import CoreML
from snapgen_deploy.export.executorch.coreml import ExecuTorchCoreML
from snapgen_deploy.export.executorch.target import ExecuTorch
from snapgen_deploy.export.executorch.vulkan import ExecuTorchVulkan

OPTIONS = {"author": "the tests", "license": "Apache-2.0", "version": "3"}


class Mixed(nn.Module):
    """A convolution with an open clamp, a projection and one attention head: what students are made of, very small."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(4, 16, 3, padding=1)
        self.q, self.k = nn.Linear(16, 16), nn.Linear(16, 16)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, latent: Tensor, bias: Tensor) -> Tensor:
        x = self.conv(latent).relu().flatten(2).transpose(1, 2)  # (1, 16, 16)
        scores = torch.bmm(self.q(x), self.k(x).transpose(1, 2)) + bias  # (1, 16, 16)
        return torch.bmm(scores.softmax(-1), x)


class RunningSum(nn.Module):
    """x -> cumulative sum of W x, which XNNPACK does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).cumsum(1)


class Shuffle(nn.Module):
    """A pixel shuffle by views: rank 6 inside."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(1, 1, 2, 2, 4, 4).permute(0, 1, 4, 2, 5, 3).reshape(1, 1, 8, 8)


def component(module: nn.Module, inputs: dict[str, tuple[int, ...]], output: tuple[str, tuple[int, ...]]) -> Component:
    """A student component around `module`, with random example inputs."""
    generator = torch.Generator().manual_seed(1)
    ports = tuple(Port(name, shape, "float32", f"about {name}") for name, shape in inputs.items())
    example = tuple(torch.randn(p.shape, generator=generator) for p in ports)
    out = Port(*output, "float32", f"about {output[0]}")
    return Component("student", module.eval(), ports, (out,), example, "about the student")


def mixed() -> Component:
    return component(Mixed(), {"latent": (1, 4, 4, 4), "bias": (1, 1, 16)}, ("velocity", (1, 16, 16)))


def running_sum() -> Component:
    return component(RunningSum(), {"x": (1, 3, 4)}, ("y", (1, 3, 4)))


def shuffle() -> Component:
    return component(Shuffle(), {"x": (1, 4, 4, 4)}, ("y", (1, 1, 8, 8)))


def arrays(of: Component) -> Arrays:
    """The example inputs by name."""
    return {port.name: tensor.numpy() for port, tensor in zip(of.inputs, of.example, strict=True)}


def reference(of: Component) -> np.ndarray:
    """What the component's module makes of the example inputs."""
    with torch.no_grad():
        result: np.ndarray = of.module(*of.example).numpy()
    return result


def contents(files: tuple[Path, ...], root: Path) -> dict[str, bytes]:
    """Relative name -> bytes."""
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in files}


def export_both(directory: Path) -> None:
    """Export `mixed` for both targets into `directory`, and for ExecuTorch's other delegates into folders of theirs."""
    torch.set_num_threads(1)
    CoreML().export(mixed(), "", "fp16", directory, OPTIONS)
    ExecuTorch().export(mixed(), "xnnpack", "fp32", directory, OPTIONS)
    for target in (ExecuTorchCoreML(), ExecuTorchVulkan()):
        (directory / target.variants[0]).mkdir()
        target.export(mixed(), target.variants[0], "fp16", directory / target.variants[0], OPTIONS)
