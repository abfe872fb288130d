"""The micro-benchmarks: small graphs of one kind of operation each, blocks that runtimes can fuse, and a few whole networks,
where weights and activations have left the caches before they are used again.

The shapes are those of small students and decoders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.export.base import Component
from snapgen_deploy.families.component import Port
from snapgen_deploy.families.names import STUDENT
from snapgen_deploy.families.registry import FAMILIES
from snapgen_deploy.models.attention import AdaptiveSparseSelfAttention, CrossAttention, SelfAttention
from snapgen_deploy.models.config import DecoderConfig
from snapgen_deploy.models.decoder import ResidualBlock, TinyDecoder
from snapgen_deploy.models.text_encoder import TextBlock
from snapgen_deploy.models.time_embedding import TimeEmbedding
from snapgen_deploy.sparse.decoder import ImageBlock, UpsampleForm
from snapgen_deploy.sparse.fold import rope_constants
from snapgen_deploy.sparse.forms import FORMS, dense
from snapgen_deploy.sparse.rewrite import rewrite_decoder
from snapgen_deploy.sparse.text_encoder import TokenTextBlock
from snapgen_deploy.sparse.token_layers import (
    GELUS,
    OpForm,
    TokenCrossAttention,
    TokenNorm,
    TokenSelfAttention,
    TokenSparseAttention,
    merge_heads,
    rotate_tokens,
    split_heads,
)
from snapgen_deploy.sparse.token_student import TokenDownsample, TokenTime, TokenUpsample
from snapgen_deploy.sparse.with_rope import WithRope

_Shape = tuple[int, ...]
# Whole networks are what is estimated, and there are few of them. A student takes 1.1 to 1.5 times the sum of its operations
# alone, a decoder 0.6 to 0.9 times (measured in onnxruntime). With weights from 8 to 32 the error on unseen networks hardly
# changed.
NETWORK_WEIGHT = 16.0


@dataclass(frozen=True)
class BenchmarkGraph:
    """One micro-benchmark."""

    name: str
    module: nn.Module
    shapes: tuple[_Shape, ...]  # shapes of its inputs
    weight: float = 1.0  # weight in the fit

    def component(self) -> Component:
        """The graph as a component to export; the role only gives the file its name."""
        example = tuple(torch.randn(s, generator=torch.Generator().manual_seed(i)) for i, s in enumerate(self.shapes))
        with torch.no_grad():
            out = self.module.eval()(*example)
        inputs = tuple(Port(f"x{i}", s, "float32", "input") for i, s in enumerate(self.shapes))
        return Component(STUDENT, self.module, inputs, (Port("y", tuple(out.shape), "float32", "output"),), example, self.name)


class Apply(nn.Module):
    """A module that applies a function, and owns the layers that the function uses."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(*inputs)


def benchmark_graphs(ops: OpForm) -> tuple[BenchmarkGraph, ...]:
    """All micro-benchmarks, written with the operators (`ops`) that the target uses."""
    torch.manual_seed(0)
    with torch.no_grad():
        single = (*_linear(), *_products(), *_rowwise(ops), *_elementwise(ops), *_moves(), *_images())
        return (*single, *_blocks(ops), *_networks(ops))


def _chain(*layers: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    return run


def _linear() -> list[BenchmarkGraph]:
    sizes = [
        (1, 320, 320), (1, 320, 1920), (24, 160, 96), (64, 320, 320), (64, 512, 1536), (144, 96, 384), (256, 480, 480),
        (576, 96, 96), (576, 224, 896), (1296, 80, 320), (2304, 48, 48),
    ]  # fmt: skip
    found = []
    for tokens, wide, wider in sizes:
        layers = [nn.Linear(a, b) for a, b in ((wide, wider), (wider, wide), (wide, wider), (wider, wide))]
        found.append(BenchmarkGraph(f"linear {tokens}x{wide}x{wider}", Apply(_chain(*layers), *layers), ((1, tokens, wide),)))
    return found


def _products() -> list[BenchmarkGraph]:
    def both(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.bmm(torch.bmm(q, k.transpose(1, 2)), v)

    def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return dense(q, k.transpose(1, 2), v)

    sizes = [
        (2, 48, 48, 16), (3, 144, 36, 24), (6, 144, 144, 48), (2, 576, 144, 16), (3, 768, 96, 64), (5, 320, 320, 32),
        (6, 600, 48, 16), (10, 600, 600, 16), (4, 1296, 324, 48),
    ]  # fmt: skip
    found = []
    for heads, n, m, d in sizes:
        shapes = ((heads, n, d), (heads, m, d), (heads, m, d))
        found += [
            BenchmarkGraph(f"{what} {heads}x{n}x{m}x{d}", Apply(f), shapes) for what, f in (("bmm", both), ("attention", core))
        ]
    return found


def _rowwise(ops: OpForm) -> list[BenchmarkGraph]:
    found = []
    for heads, n, d in ((1, 144, 96), (1, 576, 480), (4, 576, 16), (6, 576, 32), (3, 576, 64), (1, 2304, 48)):
        norms = [TokenNorm(heads, d, 1e-6, ops, torch.ones(d), torch.zeros(d)) for _ in range(3)]
        found.append(BenchmarkGraph(f"norm {heads}x{n}x{d}", Apply(_chain(*norms), *norms), ((heads, n, d),)))
    for heads, n, m in ((2, 48, 48), (6, 100, 40), (4, 144, 36), (20, 56, 88), (1, 400, 100), (3, 576, 144), (2, 576, 576)):
        twice = _chain(lambda x: x.softmax(-1), lambda x: x.softmax(-1))
        found.append(BenchmarkGraph(f"softmax {heads}x{n}x{m}", Apply(twice), ((heads, n, m),)))
    return found


def _elementwise(ops: OpForm) -> list[BenchmarkGraph]:
    def modulated(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        for _ in range(3):
            x = x + a * (x * a + b)
        return x

    def added(x: Tensor, a: Tensor) -> Tensor:
        return ((x + a) * x + a) * x

    found = []
    for n, d in ((36, 96), (144, 160), (576, 96), (2304, 48), (1296, 320), (2304, 400)):
        found.append(BenchmarkGraph(f"modulated {n}x{d}", Apply(modulated), ((1, n, d), (1, 1, d), (1, 1, d))))
        found.append(BenchmarkGraph(f"added {n}x{d}", Apply(added), ((1, n, d), (1, n, d))))
        found.append(BenchmarkGraph(f"gelu {n}x{d}", Apply(_chain(GELUS[ops], GELUS[ops])), ((1, n, d),)))
    for n, d in ((144, 160), (1296, 320)):
        found.append(BenchmarkGraph(f"sigmoid {n}x{d}", Apply(_chain(torch.sigmoid, torch.sigmoid)), ((1, n, d),)))
    for heads, n, d in ((4, 144, 16), (6, 576, 32), (3, 1152, 64)):
        rope = Apply(lambda x, c, s: rotate_tokens(rotate_tokens(x, (c, s)), (c, s)))
        found.append(BenchmarkGraph(f"rotate {heads}x{n}x{d}", rope, ((heads, n, d), (n, d), (n, d))))
    return found


def _moves() -> list[BenchmarkGraph]:
    def turned(x: Tensor) -> Tensor:
        tokens = merge_heads(x, 1) * 2.0  # split into other heads afterwards, so that an optimiser cannot cancel the transposes
        return split_heads(tokens, 8) + 1.0

    def cut(x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        return x.narrow(1, 0, half) + x.narrow(1, half // 2, half) * x.narrow(1, half, half)

    def halves(x: Tensor) -> Tensor:
        half = x.shape[2] // 2
        return x.narrow(2, 0, half) * x.narrow(2, half, half)

    found = []
    for n, heads, d in ((144, 4, 16), (144, 6, 48), (576, 6, 32), (576, 6, 64), (1296, 12, 16)):
        found.append(BenchmarkGraph(f"turned {heads}x{n}x{d}", Apply(turned), ((heads, n, d),)))
        found.append(BenchmarkGraph(f"cut {heads}x{n}x{d}", Apply(cut), ((heads, n, d),)))
        found.append(BenchmarkGraph(f"halves {heads}x{n}x{d}", Apply(halves), ((heads, n, d),)))
        for axis in (1, 2):
            joined = Apply(lambda x, y, z, axis=axis: torch.cat([torch.cat([x, y, z], axis) * 2.0, x], axis))
            found.append(BenchmarkGraph(f"joined {heads}x{n}x{d} along {axis}", joined, ((heads, n, d),) * 3))
    return found


def _images() -> list[BenchmarkGraph]:
    found = []
    for side, a, b in ((12, 4, 80), (24, 24, 48), (24, 80, 160), (48, 24, 48), (96, 12, 24)):
        twice = [nn.Conv2d(a, b, 1), nn.Conv2d(b, a, 1)]
        found.append(BenchmarkGraph(f"pointwise {side} {a}-{b}", Apply(_chain(*twice), *twice), ((1, a, side, side),)))
    for side, a, b in ((12, 4, 80), (24, 16, 24), (48, 12, 24), (96, 12, 3), (160, 24, 3)):
        conv = nn.Conv2d(a, b, 3, padding=1)
        found.append(BenchmarkGraph(f"conv {side} {a}-{b}", Apply(conv, conv), ((1, a, side, side),)))
    for side, a in ((12, 80), (24, 48), (48, 24), (48, 80), (96, 24)):
        deep = [nn.Conv2d(a, a, 3, padding=1, groups=a) for _ in range(2)]
        found.append(BenchmarkGraph(f"depthwise {side} {a}", Apply(_chain(*deep), *deep), ((1, a, side, side),)))
    for side, a in ((12, 48), (48, 12)):

        def doubled(x: Tensor) -> Tensor:
            return F.interpolate(x, scale_factor=2.0, mode="nearest")

        found.append(BenchmarkGraph(f"doubled {side} {a}", Apply(doubled), ((1, a, side, side),)))
    for side, a, b in ((12, 80, 80), (24, 48, 24), (48, 24, 24), (96, 24, 16)):
        groups = DecoderConfig().groups
        block = ImageBlock(ResidualBlock(a, b, 2, groups))
        found.append(BenchmarkGraph(f"decoder block {side} {a}-{b}", block, ((1, a, side, side),)))
    return found


def _blocks(ops: OpForm) -> list[BenchmarkGraph]:
    """Single layers that a runtime can fuse: each kind of attention, a feed-forward layer, time, resampling."""
    found = []
    for (n, d), ratio in (((144, 96), 3), ((400, 160), 4), ((1296, 80), 4), ((36, 320), 3)):
        norm, up, down = TokenNorm(1, d, 1e-6, ops), nn.Linear(d, ratio * d), nn.Linear(ratio * d, d)

        def feed(x: Tensor, a: Tensor, norm: nn.Module = norm, up: nn.Module = up, down: nn.Module = down) -> Tensor:
            y: Tensor = x + a * down(GELUS[ops](up(norm(x) * a + a)))
            return y

        found.append(BenchmarkGraph(f"feed-forward {n}x{d}", Apply(feed, norm, up, down), ((1, n, d), (1, 1, d))))
    for side, d, head, runs, radius, form in (
        (12, 96, 16, 6, 1, "batched"), (12, 288, 48, 4, 1, "batched"), (20, 160, 16, 10, 2, "batched"),
        (20, 224, 56, 5, 0, "loop"), (28, 96, 48, 7, 1, "loop"), (36, 160, 40, 12, 1, "loop"), (36, 64, 16, 9, 1, "batched"),
    ):  # fmt: skip
        sparse = AdaptiveSparseSelfAttention(d, d // head, d // head // 2, head, runs, radius)
        layer = TokenSparseAttention(sparse, 1, ops, (side, side), FORMS[form])
        rope = rope_constants(side, side, head, 1e4)
        found.append(
            BenchmarkGraph(
                f"sparse attention {side} {d} {head} {runs} {radius} {form}", WithRope(layer, rope), ((1, side * side, d),)
            )
        )
    for side, d, head in ((6, 224, 56), (12, 160, 40), (12, 96, 16), (20, 288, 48)):
        dense_layer = TokenSelfAttention(SelfAttention(d, d // head, d // head // 2, head), 1, ops)
        rope = rope_constants(side, side, head, 1e4)
        found.append(BenchmarkGraph(f"attention {side} {d} {head}", WithRope(dense_layer, rope), ((1, side * side, d),)))
    for n, d, length, inner, head in (
        (36, 224, 24, 96, 16),
        (144, 96, 56, 96, 48),
        (400, 160, 24, 160, 40),
        (1296, 64, 48, 96, 32),
    ):
        cross = TokenCrossAttention(CrossAttention(d, 96, inner, head), 1)
        found.append(
            BenchmarkGraph(f"cross-attention {n} {d} {length} {inner}", cross, ((1, n, d), (1, length, 96), (1, 1, length)))
        )
    for d in (96, 320):
        time = TokenTime(TimeEmbedding(160, d))
        found.append(BenchmarkGraph(f"time {d}", Apply(lambda x, time=time: torch.cat([*time(x, ())], 1), time), ((1, 160),)))
    for side, d in ((12, 160), (28, 96)):
        both = [
            TokenDownsample(nn.Conv2d(d, d, 2, 2), (side, side)),
            TokenUpsample(nn.ConvTranspose2d(d, d, 2, 2), (side, side)),
        ]
        found.append(BenchmarkGraph(f"resampling {side} {d}", Apply(_chain(*both), *both), ((1, side * side, d),)))
    for length, width in ((24, 96), (56, 320)):
        text = TokenTextBlock(TextBlock(width, width // 32), 1, ops)
        found.append(BenchmarkGraph(f"text block {length} {width}", text, ((1, length, width), (1, 1, length))))
    return found


def _networks(ops: OpForm) -> list[BenchmarkGraph]:
    """Students and decoders that take a few milliseconds."""
    found = [
        BenchmarkGraph(e.name, e.module, e.shapes, NETWORK_WEIGHT) for family in FAMILIES.values() for e in family.examples(ops)
    ]
    for side, channels, levels in ((12, (80, 48, 24, 24), (1, 1, 1, 0)), (20, (96, 48, 24, 16), (2, 1, 1, 1))):
        decoder = TinyDecoder(DecoderConfig(4, channels, levels, groups=4))
        upsample: UpsampleForm = "native" if ops == "native" else "transposed"
        rewritten = rewrite_decoder(decoder, (side, side), layout="token", upsample=upsample)
        found.append(BenchmarkGraph(f"decoder {side} {channels}", rewritten, ((1, 4, side, side),), NETWORK_WEIGHT))
    return found
