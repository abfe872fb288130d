"""The micro-benchmarks: small graphs of one kind of operation each, and a few blocks in which runtimes fuse what they can.

Sizes are those of small students and decoders. No graph here is a network, and none has the sizes of one that is estimated.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.export.base import Component, Port
from snapgen_deploy.models.config import DecoderConfig
from snapgen_deploy.models.decoder import ResidualBlock
from snapgen_deploy.sparse.decoder import ImageBlock
from snapgen_deploy.sparse.forms import dense
from snapgen_deploy.sparse.token_layers import GELUS, OpForm, TokenNorm, merge_heads, rotate, split_heads

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """One micro-benchmark."""

    name: str
    module: nn.Module
    shapes: tuple[Shape, ...]  # of its inputs

    def component(self) -> Component:
        """As a target exports it; the role is a file name only."""
        example = tuple(torch.randn(s, generator=torch.Generator().manual_seed(i)) for i, s in enumerate(self.shapes))
        with torch.no_grad():
            out = self.module.eval()(*example)
        inputs = tuple(Port(f"x{i}", s, "float32", "input") for i, s in enumerate(self.shapes))
        return Component("student", self.module, inputs, (Port("y", tuple(out.shape), "float32", "output"),), example, self.name)


class Apply(nn.Module):
    """A function, with the layers that it uses."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Whatever the function makes of the inputs."""
        return self.function(*inputs)


def graphs(ops: OpForm) -> tuple[Graph, ...]:
    """All of them, spelled as the target spells networks (`ops`)."""
    torch.manual_seed(0)
    with torch.no_grad():
        return (*_linear(), *_products(), *_rowwise(ops), *_elementwise(ops), *_moves(), *_images(), *_blocks(ops))


def _chain(*layers: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    return run


def _linear() -> list[Graph]:
    sizes = [
        (1, 320, 320), (1, 320, 1920), (24, 160, 96), (64, 320, 320), (64, 512, 1536), (144, 96, 384), (256, 160, 160),
        (256, 480, 480), (576, 96, 96), (576, 224, 896), (1024, 320, 320), (1296, 80, 320), (2304, 48, 48),
    ]  # fmt: skip
    found = []
    for tokens, wide, wider in sizes:
        layers = [nn.Linear(a, b) for a, b in ((wide, wider), (wider, wide), (wide, wider), (wider, wide))]
        found.append(Graph(f"linear {tokens}x{wide}x{wider}", Apply(_chain(*layers), *layers), ((1, tokens, wide),)))
    return found


def _products() -> list[Graph]:
    def both(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.bmm(torch.bmm(q, k.transpose(1, 2)), v)

    def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return dense(q, k.transpose(1, 2), v)

    sizes = [
        (2, 48, 48, 16), (4, 96, 96, 32), (3, 144, 36, 24), (6, 144, 144, 48), (2, 576, 144, 16), (4, 576, 144, 32),
        (3, 768, 96, 64), (5, 320, 320, 32), (2, 1152, 288, 64), (6, 600, 48, 16),
    ]  # fmt: skip
    found = []
    for heads, n, m, d in sizes:
        shapes = ((heads, n, d), (heads, m, d), (heads, m, d))
        found += [Graph(f"{what} {heads}x{n}x{m}x{d}", Apply(f), shapes) for what, f in (("bmm", both), ("attention", core))]
    return found


def _rowwise(ops: OpForm) -> list[Graph]:
    found = []
    for heads, n, d in ((1, 144, 96), (1, 576, 224), (1, 576, 480), (4, 576, 16), (6, 576, 32), (3, 576, 64), (1, 2304, 48)):
        norms = [TokenNorm(heads, d, 1e-6, ops, torch.ones(d), torch.zeros(d)) for _ in range(3)]
        found.append(Graph(f"norm {heads}x{n}x{d}", Apply(_chain(*norms), *norms), ((heads, n, d),)))
    for heads, n, m in ((2, 48, 48), (4, 144, 36), (4, 288, 288), (3, 576, 144), (2, 576, 576)):
        twice = _chain(lambda x: x.softmax(-1), lambda x: x.softmax(-1))
        found.append(Graph(f"softmax {heads}x{n}x{m}", Apply(twice), ((heads, n, m),)))
    return found


def _elementwise(ops: OpForm) -> list[Graph]:
    def modulated(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        for _ in range(3):
            x = x + a * (x * a + b)
        return x

    def added(x: Tensor, a: Tensor) -> Tensor:
        return ((x + a) * x + a) * x

    found = []
    for n, d in ((36, 96), (144, 160), (576, 96), (576, 480), (1296, 320), (2304, 400)):
        found.append(Graph(f"modulated {n}x{d}", Apply(modulated), ((1, n, d), (1, 1, d), (1, 1, d))))
        found.append(Graph(f"added {n}x{d}", Apply(added), ((1, n, d), (1, n, d))))
        found.append(Graph(f"gelu {n}x{d}", Apply(_chain(GELUS[ops], GELUS[ops])), ((1, n, d),)))
    for n, d in ((144, 160), (1296, 320)):
        found.append(Graph(f"sigmoid {n}x{d}", Apply(_chain(torch.sigmoid, torch.sigmoid)), ((1, n, d),)))
    for heads, n, d in ((4, 144, 16), (6, 576, 32), (3, 1152, 64)):
        rope = Apply(lambda x, c, s: rotate(rotate(x, (c, s)), (c, s)))
        found.append(Graph(f"rotate {heads}x{n}x{d}", rope, ((heads, n, d), (n, d), (n, d))))
    return found


def _moves() -> list[Graph]:
    def turned(x: Tensor) -> Tensor:
        y = x.transpose(0, 1) + 1.0
        return y.transpose(0, 1) * 2.0

    def cut(x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        parts = [x.narrow(1, 0, half), x.narrow(1, half // 2, half), x.narrow(1, half, half)]
        return torch.cat([torch.cat(parts, 2), torch.cat(parts[::-1], 2)], 1)

    found = []
    for n, heads, d in ((144, 4, 16), (144, 6, 48), (576, 4, 16), (576, 6, 32), (576, 6, 64), (1296, 12, 16)):
        found.append(Graph(f"turned {n}x{heads}x{d}", Apply(turned), ((n, heads, d),)))
        found.append(Graph(f"cut {heads}x{n}x{d}", Apply(cut), ((heads, n, d),)))
    return found


def _images() -> list[Graph]:
    found = []
    for side, a, b in ((12, 4, 80), (24, 24, 48), (24, 80, 160), (48, 24, 48), (96, 12, 24)):
        twice = [nn.Conv2d(a, b, 1), nn.Conv2d(b, a, 1)]
        found.append(Graph(f"pointwise {side} {a}-{b}", Apply(_chain(*twice), *twice), ((1, a, side, side),)))
    for side, a, b in ((12, 4, 80), (24, 16, 24), (96, 12, 3)):
        conv = nn.Conv2d(a, b, 3, padding=1)
        found.append(Graph(f"conv {side} {a}-{b}", Apply(conv, conv), ((1, a, side, side),)))
    for side, a in ((12, 80), (24, 48), (48, 24), (96, 24)):
        deep = [nn.Conv2d(a, a, 3, padding=1, groups=a) for _ in range(2)]
        found.append(Graph(f"depthwise {side} {a}", Apply(_chain(*deep), *deep), ((1, a, side, side),)))
    for side, a in ((12, 48), (48, 12)):

        def doubled(x: Tensor) -> Tensor:
            return F.interpolate(x, scale_factor=2.0, mode="nearest")

        found.append(Graph(f"doubled {side} {a}", Apply(doubled), ((1, a, side, side),)))
    for side, a, b in ((12, 80, 80), (24, 48, 24), (48, 24, 24), (96, 24, 16)):
        groups = DecoderConfig().groups
        block = ImageBlock(ResidualBlock(a, b, 2, groups))
        found.append(Graph(f"decoder block {side} {a}-{b}", block, ((1, a, side, side),)))
    return found


def _blocks(ops: OpForm) -> list[Graph]:
    """A feed-forward layer with its norm and modulation, and an attention layer from projection to projection."""
    found = []
    for n, d in ((144, 96), (576, 160), (1296, 80)):
        norm, up, down = TokenNorm(1, d, 1e-6, ops), nn.Linear(d, 3 * d), nn.Linear(3 * d, d)

        def feed(x: Tensor, a: Tensor, norm: nn.Module = norm, up: nn.Module = up, down: nn.Module = down) -> Tensor:
            y: Tensor = x + a * down(GELUS[ops](up(norm(x) * a + a)))
            return y

        found.append(Graph(f"feed-forward {n}x{d}", Apply(feed, norm, up, down), ((1, n, d), (1, 1, d))))
    for (n, d), head in itertools.product(((144, 96), (576, 192)), (16, 48)):
        layers = [nn.Linear(d, d) for _ in range(4)]

        def attend(x: Tensor, layers: list[nn.Linear] = layers, head: int = head) -> Tensor:
            q, k, v = (split_heads(layer(x), head) for layer in layers[:3])
            y: Tensor = x + layers[3](merge_heads(dense(q, k.transpose(1, 2), v), 1))
            return y

        found.append(Graph(f"attention layer {n}x{d}, heads of {head}", Apply(attend, *layers), ((1, n, d),)))
    return found
