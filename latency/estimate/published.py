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
from typing import Literal

from torch import nn

from snapgen_deploy.export.coreml.spec import COREML
from snapgen_deploy.families.names import DECODER, STUDENT
from snapgen_deploy.families.registry import components_of, family_of
from snapgen_deploy.latency.estimate.cost import OpCost
from snapgen_deploy.latency.estimate.cost_components import Drawn, component_costs, spelling_of
from snapgen_deploy.latency.estimate.machine import excess, read_again, streamed
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.models.dit_config import dit_of
from snapgen_deploy.models.presets import snapgen, snapgenpp
from snapgen_deploy.models.unfilled import without_storage

SOURCE = "SnapGen++, arXiv 2601.08303, iPhone 16 Pro Max, Core ML, 1024 x 1024"
_LATENT = (128, 128)
ON_CHIP = 5e6  # bytes; community measurements: activations above 2 to 5 MB are streamed from memory
# Pictures of four steps, in ms: of `small` 1.7 to 1.8 s, of the others as published, to a tenth of a second.
PICTURE_TIMES: Mapping[str, float] = MappingProxyType({"small": 1750.0, "full": 6700.0, "snapgen": 1400.0})


# What sets a network apart from those that the fit describes: see `estimate_fitted.APART_SHARES`.
Apart = Literal["maps", "again"]


@dataclass(frozen=True)
class Load:
    """The sums that the model of an accelerator needs, and those that tell which published networks a network is like."""

    macs: float
    moved: float  # bytes of activations, without attention scores
    spilled: float  # bytes of attention scores beyond ON_CHIP
    weights: float  # bytes
    again: float  # bytes of operands read again, because they exceed ON_CHIP
    maps: float  # bytes of activations at convolutions with several taps, of `moved`
    attended: float  # MACs of products of two activations, of `macs`


@dataclass(frozen=True)
class Point:
    """One published time."""

    name: str
    ms: float
    what: str
    assumed: str
    load: Load
    apart: Apart | None = None  # set: the rates are not fitted to it, because they cannot meet it and the others


POINTS = (
    Point(
        "A",
        2000,
        "PixArt-alpha-like, MQA, FFN 3, 424M, full attention over 4096 tokens",
        "PixArt-alpha's 28 blocks, hidden 1152, 16 heads of 72, cross-attention 1152 wide: 450M",
        Load(2.6996e12, 3.13578e10, 5.11695e10, 9.75924e08, 6.36432e08, 4.35159e07, 1.1365e12),
    ),
    Point(
        "C",
        293,
        "three stages and ASSA, 408M",
        "the blocks of (D), MQA and FFN 3 as (A), hidden 1088 (17 heads of 64), no skips: 398M",
        Load(1.35556e12, 2.58666e10, 4.14766e09, 8.48056e08, 3.01612e08, 2.27688e08, 3.40431e11),
    ),
    Point(
        "small",
        360,
        "(D): dense skips, GQA-8, FFN 4 in Down and Up, 429M",
        "the preset: 436M",
        Load(1.47627e12, 2.88087e10, 3.90368e09, 9.23055e08, 5.33952e08, 3.80895e08, 3.22479e11),
    ),
    Point(
        "tiny",
        280,
        "the elastic network at 0.375, 0.3B",
        "the preset: 277M",
        Load(9.36955e11, 2.19815e10, 2.92776e09, 6.03689e08, 0.0, 2.85934e08, 2.50673e11),
    ),
    Point(
        "full",
        1580,
        "SnapGen++ at full width, 1.6B, palettes of 4.3 bits on average",
        "the preset: 1.48B; weights decoded to 16 bits",
        Load(4.84303e12, 5.61177e10, 7.80735e09, 3.02176e09, 9.19344e09, 7.60742e08, 6.09705e11),
        apart="again",
    ),
    Point(
        DECODER,
        119.5,
        "SnapGen's tiny decoder, 1.38M; 119 to 120 ms",
        "the preset's channels: 1.36M",
        Load(5.62711e10, 1.54189e10, 0.0, 3.37398e06, 0.0, 2.22982e09, 0.0),
    ),
    Point(
        "snapgen",
        274,
        "SnapGen's U-Net, 372M",
        "the preset: 380M; the graph that was timed is not published",
        Load(5.84391e11, 1.55743e10, 0.0, 7.78171e08, 0.0, 6.16644e08, 6.93444e10),
        apart="maps",
    ),
)


def trace_point(name: str) -> tuple[OpCost, ...]:
    """The operations of a point, as this tool exports its architecture for Core ML."""
    config, width = _architecture(name)
    components = components_of(config)
    spec = components[name if name in components.names else STUDENT]
    with without_storage():
        network = spec.build(width)
    if name in ("A", "C"):
        network.skips = nn.ModuleList()  # the paper adds dense skips in (D)
    drawn = Drawn(width, config.resolution, (config.student.latent_channels, *_LATENT))
    return component_costs(config, spec, network, drawn, spelling_of(COREML.key), family_of(config).form(config, _LATENT))


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
    return Load(
        macs=sum(o.macs for o in ops),
        moved=sum(map(streamed, ops)),
        spilled=excess(ops, ON_CHIP, overlap=True),
        weights=sum(o.weights for o in ops),
        again=sum(read_again(o, ON_CHIP) for o in ops),
        maps=sum(streamed(o) for o in ops if o.kind in ("conv", "depthwise")),
        attended=sum(o.macs for o in ops if o.kind == "product"),
    )
