"""Tiny components that the ONNX tests export."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from snapgen_deploy.export.base import Component, Port
from snapgen_deploy.models import (
    DecoderConfig,
    DiT,
    DiTConfig,
    ModelConfig,
    TextEncoder,
    TextEncoderConfig,
    TextStream,
    TinyDecoder,
    time_features,
)

LENGTH, DIM, LATENT = 6, 16, (1, 4, 8, 8)
CONFIG = ModelConfig(
    DiTConfig(
        latent_channels=4, hidden=64, head_dim=8, depths=(1, 1, 1), blocks=2, text_streams=(TextStream("text", DIM, LENGTH),),
        text_width=16, cross_dim=16, time_features=32,
    ),
    DecoderConfig(latent_channels=4, channels=(16, 8), blocks=(1, 1), groups=4),
    TextEncoderConfig(vocab=20, length=LENGTH, width=DIM, layers=1, heads=2),
    name="tiny-test",
    resolution=(16, 16),
)  # fmt: skip


class FlatStudent(nn.Module):
    """The reference student with positional inputs, as a component is called."""

    def __init__(self, dit: DiT) -> None:
        super().__init__()
        self.dit = dit

    def forward(self, latent: Tensor, features: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        velocity: Tensor = self.dit(latent, features, {"text": text}, {"text": mask})
        return velocity


class Double(nn.Module):
    """x -> 2 W x: the smallest network with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 16).reshape(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x @ self.weight


def randomised(module: nn.Module) -> nn.Module:
    """The same weights everywhere, none of them zero, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module.eval()


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def f32(name: str, *shape: int) -> Port:
    return Port(name, shape, "float32", f"doc of {name}")


def double() -> Component:
    return Component("decoder", Double(), (f32("latent", 2, 4),), (f32("picture", 2, 4),), (_normal(2, 4),), "doubles")


def student() -> Component:
    inputs = (f32("latent", *LATENT), f32("time_features", 1, 32), f32("text", 1, LENGTH, DIM), f32("text_mask", 1, LENGTH))
    mask = torch.tensor([[1.0, 1, 1, 1, 0, 0]])
    example = (_normal(*LATENT), time_features(torch.tensor([0.9]), 32), _normal(1, LENGTH, DIM), mask)
    module = randomised(FlatStudent(DiT(CONFIG.student)))
    return Component("student", module, inputs, (f32("velocity", *LATENT),), example, "velocity of the latent")


def rewritten() -> Component:
    """The student in the form that is shipped, with the reference student's weights and example."""
    from snapgen_deploy.sparse import rewrite_student

    reference = student()
    assert isinstance(reference.module, FlatStudent)
    module = rewrite_student(reference.module.dit, LATENT[2:], layout="token", form="loop")
    return dataclasses.replace(reference, module=module.eval())


def decoder() -> Component:
    assert CONFIG.decoder is not None
    module = randomised(TinyDecoder(CONFIG.decoder))
    ports = ((f32("latent", *LATENT),), (f32("picture", 1, 3, 16, 16),))
    return Component("decoder", module, *ports, (_normal(*LATENT),), "picture of the latent")


def text_encoder() -> Component:
    assert CONFIG.text_encoder is not None
    module = randomised(TextEncoder(CONFIG.text_encoder))
    inputs = (Port("tokens", (1, LENGTH), "int32", "doc of tokens"), f32("mask", 1, LENGTH))
    example = (torch.tensor([[1, 19, 3, 0, 0, 0]], dtype=torch.int32), torch.tensor([[1.0, 1, 1, 0, 0, 0]]))
    return Component("text_encoder", module, inputs, (f32("text", 1, LENGTH, DIM),), example, "embeddings")
