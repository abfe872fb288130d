"""Published times of the iPhone 16 Pro Max, with the architectures that were timed: SnapGen++, arXiv 2601.08303.

SnapGen's own figures (arXiv 2412.09619: 274 ms a step, 119 to 120 ms for the decoder) are among them. The papers do not state
hidden widths, heads, head and text dimensions, and the channels of the decoder. A point uses those of a preset instead, and a
hidden width that gives about the published number of parameters; see `assumed`.

A point's `Load` sums up the graph that this tool exports for Core ML, with two bytes for every weight. The sums are stored
because tracing all points takes half a minute; a test compares them with the trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import nn

from snapgen_deploy.export.coreml.spec import COREML
from snapgen_deploy.families.names import DECODER, STUDENT
from snapgen_deploy.families.registry import components_of, family_of
from snapgen_deploy.latency.estimate.cost import OpCost
from snapgen_deploy.latency.estimate.cost_components import Drawn, component_costs
from snapgen_deploy.latency.estimate.machine import excess, streamed
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.models.dit_config import dit_of
from snapgen_deploy.models.presets import snapgen, snapgenpp

SOURCE = "SnapGen++, arXiv 2601.08303, iPhone 16 Pro Max, Core ML, 1024 x 1024"
_LATENT = (128, 128)
ON_CHIP = 5e6  # bytes; community measurements: activations above 2 to 5 MB are streamed from memory
# Pictures of four steps, in ms: of `small` 1.7 to 1.8 s, of the others as published, to a tenth of a second.
PICTURE_TIMES: Mapping[str, float] = MappingProxyType({"small": 1750.0, "full": 6700.0, "snapgen": 1400.0})


@dataclass(frozen=True)
class Load:
    """The sums that the model of an accelerator needs."""

    macs: float
    moved: float  # bytes of activations, without attention scores
    excess: float  # bytes from main memory: scores beyond ON_CHIP, weights, operands read again


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
        Load(2.6996e12, 3.13578e10, 5.27819e10),
    ),
    Point(
        "C",
        293,
        "three stages and ASSA, 408M",
        "the blocks of (D), MQA and FFN 3 as (A), hidden 1088 (17 heads of 64), no skips: 398M",
        Load(1.35556e12, 2.58666e10, 5.29732e09),
    ),
    Point(
        "small",
        360,
        "(D): dense skips, GQA-8, FFN 4 in Down and Up, 429M",
        "the preset: 436M",
        Load(1.47627e12, 2.88087e10, 5.36068e09),
    ),
    Point(
        "tiny",
        280,
        "the elastic network at 0.375, 0.3B",
        "the preset: 277M",
        Load(9.36955e11, 2.19815e10, 3.53145e09),
    ),
    Point(
        "full",
        1580,
        "the elastic network at 1, 1.6B, palettes of 4.3 bits on average",
        "the preset: 1.48B; weights decoded to 16 bits",
        Load(4.84303e12, 5.61177e10, 2.00226e10),
    ),
    Point(
        DECODER,
        119.5,
        "SnapGen's tiny decoder, 1.38M; 119 to 120 ms",
        "the preset's channels: 1.36M",
        Load(5.62711e10, 1.54189e10, 3.37398e06),
    ),
    Point(
        "snapgen",
        274,
        "SnapGen's U-Net, 372M",
        "the preset: 380M; the graph that was timed is not published",
        Load(5.84391e11, 1.55743e10, 7.78171e08),
    ),
)


def trace_point(name: str) -> tuple[OpCost, ...]:
    """The operations of a point, as this tool exports its architecture for Core ML."""
    config, width = _architecture(name)
    components = components_of(config)
    spec = components[name if name in components.names else STUDENT]
    with torch.device("meta"):
        network = spec.build(width)
    if name in ("A", "C"):
        network.skips = nn.ModuleList()  # the paper adds dense skips in (D)
    drawn = Drawn(width, config.resolution, (config.student.latent_channels, *_LATENT))
    return component_costs(config, spec, network, drawn, COREML.key, family_of(config).form(config, _LATENT))


def _architecture(name: str) -> tuple[ModelConfig, str]:
    """The configuration and the width of a point."""
    preset = snapgen() if name == "snapgen" else snapgenpp()
    if name == "A":
        one = replace(dit_of(preset), hidden=1152, head_dim=72, kv_group=16, cross_dim=1152, widths={"full": 1.0})
        full = replace(one, depths=(14, 0, 14), attention=("full", "full", "full"), ffn_ratios=(3, 3, 3))
        return replace(preset, student=full), "full"
    if name == "C":
        sparse = replace(dit_of(preset), hidden=1088, kv_group=17, ffn_ratios=(3, 3, 3), widths={"full": 1.0})
        return replace(preset, student=sparse), "full"
    return preset, name if name in preset.student.widths else "full"


def load_of(ops: tuple[OpCost, ...]) -> Load:
    """The sums over some operations."""
    return Load(sum(o.macs for o in ops), sum(map(streamed, ops)), excess(ops, ON_CHIP, overlap=True))
