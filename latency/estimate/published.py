"""Published times of the iPhone 16 Pro Max, with the architectures that were timed: SnapGen++, arXiv 2601.08303.

The paper does not state hidden widths, heads, head and text dimensions, and the channels of the decoder. A point uses those of
the `snapgenpp` preset instead, and a hidden width that gives about the published number of parameters; see `assumed`. The
SnapGen U-Net (274 ms) is left out, since this tool does not support its architecture.

A point's `Load` sums up the graph that this tool exports for Core ML. The sums are stored because tracing all points takes half
a minute; a test compares them with the trace.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from snapgen_deploy.export.coreml.spec import COREML
from snapgen_deploy.families.names import DECODER, STUDENT
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.latency.estimate.cost import OpCost
from snapgen_deploy.latency.estimate.cost_components import Drawn, component_costs
from snapgen_deploy.latency.estimate.machine import excess
from snapgen_deploy.models.dit_config import DiTConfig, dit_of
from snapgen_deploy.models.presets import snapgenpp

SOURCE = "SnapGen++, arXiv 2601.08303, iPhone 16 Pro Max, Core ML, 1024 x 1024"
_LATENT = (128, 128)
ON_CHIP = 5e6  # bytes; community measurements: activations above 2 to 5 MB are streamed from memory
PICTURE_MS = 1750.0  # four steps of `small` and the decoder: middle of the published 1.7 to 1.8 s


@dataclass(frozen=True)
class Load:
    """The sums that the model of an accelerator needs."""

    macs: float
    moved: float  # bytes, without attention scores
    spilled: float  # bytes of attention scores beyond ON_CHIP


@dataclass(frozen=True)
class Point:
    """One published time."""

    name: str
    ms: float
    what: str
    assumed: str
    load: Load


POINTS = (
    Point(
        "A",
        2000,
        "PixArt-alpha-like, MQA, FFN 3, 424M, full attention over 4096 tokens",
        "PixArt-alpha's 28 blocks, hidden 1152, 16 heads of 72, cross-attention 1152 wide: 450M",
        Load(2.6996e12, 3.23338e10, 5.11695e10),
    ),
    Point(
        "C",
        293,
        "three stages and ASSA, 408M",
        "the blocks of (D), MQA and FFN 3 as (A), hidden 1088 (17 heads of 64), no skips: 398M",
        Load(1.35556e12, 2.67146e10, 4.14766e09),
    ),
    Point(
        "small",
        360,
        "(D): dense skips, GQA-8, FFN 4 in Down and Up, 429M",
        "the preset: 436M",
        Load(1.47627e12, 2.97318e10, 3.90368e09),
    ),
    Point(
        "tiny",
        280,
        "the elastic network at 0.375, 0.3B",
        "the preset: 277M",
        Load(9.36955e11, 2.25852e10, 2.92776e09),
    ),
    Point(
        DECODER,
        119.5,
        "SnapGen's tiny decoder, 1.38M; 119 to 120 ms",
        "the preset's channels: 1.36M",
        Load(5.62711e10, 1.54223e10, 0.0),
    ),
)


def trace_point(name: str) -> tuple[OpCost, ...]:
    """The operations of a point, as this tool exports its architecture for Core ML."""
    preset = snapgenpp()
    student, width = _architecture(name, dit_of(preset))
    config = replace(preset, student=student)
    components = components_of(config)
    spec = components[name if name in components.names else STUDENT]
    with torch.device("meta"):
        network = spec.build(width)
    if name in ("A", "C"):
        network.skips = nn.ModuleList()  # the paper adds dense skips in (D)
    drawn = Drawn(width, config.resolution, (student.latent_channels, *_LATENT))
    return component_costs(config, spec, network, drawn, COREML.key, "loop")


def _architecture(name: str, preset: DiTConfig) -> tuple[DiTConfig, str]:
    if name == "A":
        one = replace(preset, hidden=1152, head_dim=72, kv_group=16, cross_dim=1152, widths={"full": 1.0})
        return replace(one, depths=(14, 0, 14), attention=("full", "full", "full"), ffn_ratios=(3, 3, 3)), "full"
    if name == "C":
        return replace(preset, hidden=1088, kv_group=17, ffn_ratios=(3, 3, 3), widths={"full": 1.0}), "full"
    return preset, name if name in preset.widths else "full"


def load_of(ops: tuple[OpCost, ...]) -> Load:
    """The sums over some operations."""
    moved = sum(o.read + o.written - o.scores for o in ops)
    return Load(sum(o.macs for o in ops), moved, excess(ops, ON_CHIP, overlap=True))
