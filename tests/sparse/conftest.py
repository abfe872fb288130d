"""Small reference networks with weights that exercise every path (nothing is zero, norms are not the identity)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from snapgen_deploy.models import (
    DecoderConfig,
    DiT,
    DiTConfig,
    TextEncoder,
    TextEncoderConfig,
    TextStream,
    TinyDecoder,
    time_features,
)

SMALL = DiTConfig(
    latent_channels=3,
    hidden=64,
    head_dim=8,
    depths=(1, 2, 1),
    blocks=4,
    text_streams=(TextStream("text", 12, 5),),
    text_width=24,
    cross_dim=16,
    time_features=16,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


M = TypeVar("M", bound=torch.nn.Module)


def filled(module: M, seed: int) -> M:
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        p.requires_grad_(False)
        noise = torch.randn(p.shape, generator=generator)
        fan = p[0].numel() if p.dim() > 1 else 1
        p.copy_(noise * (fan**-0.5 if p.dim() > 1 else 0.3) + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return module.eval()


def make_student(seed: int = 0, width: str = "full", **changes: object) -> DiT:
    return filled(DiT(replace(SMALL, **changes), width), seed)


def make_decoder(seed: int = 0, **changes: object) -> TinyDecoder:
    config = DecoderConfig(
        latent_channels=3, channels=(16, 8), blocks=(1, 1), groups=4, latent_mean=(0.5, -1.0, 2.0), latent_std=(2.0, 0.5, 1.5)
    )
    return filled(TinyDecoder(replace(config, **changes)), seed)


def make_encoder(seed: int = 0, **changes: object) -> TextEncoder:
    config = TextEncoderConfig(vocab=32, length=7, width=16, layers=2, heads=4)
    return filled(TextEncoder(replace(config, **changes)), seed)


def student_inputs(config: DiTConfig, latent: tuple[int, int], batch: int = 1, seed: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    found = [
        torch.randn(batch, config.latent_channels, *latent, generator=generator),
        time_features(torch.rand(batch, generator=generator), config.time_features),
    ]
    for stream in config.text_streams:
        lengths = torch.randint(1, stream.length + 1, (batch, 1), generator=generator)
        mask = (torch.arange(stream.length) < lengths).float()
        found += [torch.randn(batch, stream.length, stream.dim, generator=generator), mask]
    return tuple(found)


def reference_velocity(dit: DiT, inputs: tuple[Tensor, ...]) -> Tensor:
    names = [s.name for s in dit.config.text_streams]
    velocity: Tensor = dit(
        inputs[0], inputs[1], dict(zip(names, inputs[2::2], strict=True)), dict(zip(names, inputs[3::2], strict=True))
    )
    return velocity


def relative(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return float((got.double() - expected.double()).norm() / expected.double().norm())


class Kit:
    """What the tests of this folder share."""

    SMALL = SMALL
    student = staticmethod(make_student)
    decoder = staticmethod(make_decoder)
    encoder = staticmethod(make_encoder)
    inputs = staticmethod(student_inputs)
    velocity = staticmethod(reference_velocity)
    relative: Callable[[Tensor, Tensor], float] = staticmethod(relative)


@pytest.fixture(scope="session")
def kit() -> type[Kit]:
    return Kit
