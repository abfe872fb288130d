"""SnapGen's U-Net as the paper has it: sizes, where attention is, and what a call gets."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from snapgen_deploy.models import PRESETS, TextStream
from snapgen_deploy.models.unet import MultiQueryAttention, TimedBlock, UNet
from snapgen_deploy.models.unet_config import UNetConfig, unet_of
from snapgen_deploy.models.unfilled import without_storage

SMALL = UNetConfig(
    latent_channels=3, channels=(8, 16), blocks=(0, 1), residuals=1, groups=4, head_dim=8, time_features=16, time_width=12,
    text_streams=(TextStream("text", 12, 5), TextStream("llm", 10, 3)), text_width=24,
)  # fmt: skip


def counted(config: UNetConfig) -> UNet:
    with without_storage():
        return UNet(config)


def test_the_preset_is_of_the_published_size_and_form() -> None:
    config = unet_of(PRESETS["snapgen"]())
    net = counted(config)
    assert 365e6 <= sum(p.numel() for p in net.parameters()) <= 390e6
    assert (config.channels, config.blocks, config.ffn_ratio, config.expansion) == ((256, 512, 896), (0, 2, 4), 3, 2)
    by_level = {
        level: sum(isinstance(m, MultiQueryAttention) for at, layer in net.layers() if at == level for m in layer.modules())
        for level in range(3)
    }
    assert by_level == {0: 0, 1: 5 * 2, 2: 6 * 4 * 2}  # cross-attention from the first level with blocks; self-attention below
    for block in (m for m in net.modules() if isinstance(m, TimedBlock)):
        dense = [c for c in block.modules() if isinstance(c, nn.Conv2d) and c.kernel_size == (3, 3) and c.groups == 1]
        assert dense == []  # separable
    keys = {m.k.out_features for m in net.modules() if isinstance(m, MultiQueryAttention)}
    assert keys == {config.head_dim}  # one key/value head


def test_a_gate_is_a_field() -> None:
    gated, plain = (sum(p.numel() for p in counted(replace(UNetConfig(), ffn_gated=g)).parameters()) for g in (True, False))
    assert gated > 1.15 * plain


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"blocks": (0,)}, "2 channels and 1 blocks; expected one of each per level"),
        ({"groups": 3}, r"channels\[0\]: 8 must be a multiple of groups 3"),
        ({"head_dim": 12}, r"channels\[1\]: 16 must be a multiple of head_dim 12"),
        ({"head_dim": 2}, "head_dim 2 must be a multiple of 4"),
        ({"text_streams": (TextStream("text", 12, 5, pooled=12),)}, "text_streams: text has a pooled vector"),
        ({"time_features": 15}, "time_features 15 must be a positive even number"),
        ({"blocks": (0, 512), "residuals": 2}, "blocks: got 512 x residuals 2, expected at most 512"),
    ],
)
def test_problems_are_named(changes: dict[str, object], problem: str) -> None:
    assert SMALL.problems() == []
    found = replace(SMALL, **changes).problems()  # type: ignore[arg-type]
    assert any(re.match(problem, line) for line in found), found


def test_a_call_checks_its_latent_and_its_text() -> None:
    net = UNet(SMALL).eval()
    words, seen = torch.randn(1, 5, 12), torch.ones(1, 5)
    features = torch.randn(1, 16)
    with pytest.raises(ValueError, match="latent 5x4: both sides must be positive multiples of 2"):
        net(torch.randn(1, 3, 5, 4), features, {"text": words}, {"text": seen})
    with pytest.raises(ValueError, match="text streams: got"):
        net(torch.randn(1, 3, 4, 4), features, {"other": words}, {"other": seen})
    latent = torch.randn(1, 3, 6, 4)
    alone = net(latent, features, {"text": words}, {"text": seen})
    assert alone.shape == latent.shape
    absent = net(latent, features, {"text": words, "llm": torch.randn(1, 3, 10)}, {"text": seen, "llm": torch.zeros(1, 3)})
    assert torch.allclose(alone, absent, atol=1e-6)


def test_its_training_cost_counts_every_layer() -> None:
    net = counted(SMALL)
    cost = net.training_cost((8, 8))
    assert sum(stage.depth for stage in cost.stages) == len(net.recomputable()) == 7
    assert (cost.tokens, cost.hidden) == (64, 8)
    assert all(stage.kept > 0 for stage in cost.stages)
