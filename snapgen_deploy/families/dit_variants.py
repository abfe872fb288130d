"""What diffusion transformers in the wild do otherwise than `models.dit`, with the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.families.variant import Change, Variant, activations, given, having, modules_of, orders, returning
from snapgen_deploy.models.attention import AdaptiveSparseSelfAttention, CrossAttention, FeedForward, SelfAttention, rotate
from snapgen_deploy.models.dit import DiT, DiTBlock
from snapgen_deploy.models.text_projection import TextProjection

Turn = Callable[[Tensor, Tensor, Tensor], Tensor]


def dit_variants(network: nn.Module) -> Sequence[Variant]:
    """Those that fit the tensors of a diffusion transformer."""
    assert isinstance(network, DiT)
    c = network.config
    has_sparse = "assa" in c.attention
    positions = ("no absolute positions", "absolute positions")
    theirs, ours = positions if c.absolute_positions else reversed(positions)
    said = str(not c.absolute_positions).lower()
    flipped = _configured(absolute_positions=not c.absolute_positions)
    sparse = [
        Variant("gate of ASSA", "g weighs the local side", "g weighs the global side", _flipped_gate),
        *(
            Variant("radius", f"radius {r}", f"radius {c.radius}", _sparse(radius=r), f"set student.radius to {r}")
            for r in range(max(c.radius - 1, 0), c.radius + 3)
            if r != c.radius
        ),
        *(
            Variant("blocks", f"{b} blocks", f"{c.blocks} blocks", _sparse(blocks=b), f"set student.blocks to {b}")
            for b in (c.blocks // 4, c.blocks // 2, 2 * c.blocks, 4 * c.blocks)
            if b
        ),
    ]
    return [
        *activations("activation of the FFN", FeedForward, "tanh GELU"),
        Variant("RoPE", "channel 2i paired with 2i + 1", "channel i paired with i + d/2", _turned(_interleaved)),
        Variant("RoPE", "columns before rows", "rows before columns", _turned(_columns_first)),
        Variant("RoPE", "no rotary positions", "rotary positions", _turned(lambda x, cos, sin: x)),
        Variant("RoPE", "rotary positions before the norm of q and k", "after it", _turned(rotate, norm_last=True)),
        Variant("absolute positions", theirs, ours, flipped, f"set student.absolute_positions to {said}"),
        *(
            Variant("RoPE's base", f"{t:g}", f"{c.rope_theta:g}", _configured(rope_theta=t), f"set student.rope_theta to {t:g}")
            for t in (100.0, 256.0, 1000.0, 10000.0, 1000000.0)
            if t != c.rope_theta
        ),
        *orders("self-attention", SelfAttention, network),
        *orders("cross-attention", CrossAttention, network),
        *(sparse if has_sparse else ()),
        Variant("modulation", "scale before shift", "shift before scale", _scale_first),
        Variant("modulation", "scale", "1 + scale", _plain_scale),
        Variant("norm placement", "LayerNorm before cross-attention", "no norm before it", _cross_norm),
        Variant("padding", "padding of texts is seen", "it is masked", _unmasked),
        *activations("activation of the text projection", TextProjection, "tanh GELU"),
        Variant("time features", "sines first", "cosines first", _sines_first),
        Variant("velocity", "picture minus noise", "noise minus picture", lambda n: returning([n], lambda v: -v)),
    ]


def _interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding that pairs channel 2i with 2i + 1; x (B, h, N, d), cos and sin (N, d/2)."""
    a, b = x[..., 0::2], x[..., 1::2]  # (B, h, N, d/2) each
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)  # (B, h, N, d)


def _columns_first(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1] // 2
    return rotate(x, cos.roll(half, -1), sin.roll(half, -1))


def _turned(turn: Turn, *, norm_last: bool = False) -> Change:
    """Self-attention whose q and k are turned by another function, or before their norm."""

    def other(layer: SelfAttention) -> dict[str, Any]:
        def project(x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = (p(x).unflatten(2, (-1, layer.head_dim)).transpose(1, 2) for p in (layer.q, layer.k, layer.v))
            if norm_last:
                return layer.q_norm(turn(q, *rope)), layer.k_norm(turn(k, *rope)), v
            return turn(layer.q_norm(q), *rope), turn(layer.k_norm(k), *rope), v

        return {"project": project}

    return lambda network: having(modules_of(network, SelfAttention), other)


def _configured(**values: Any) -> Change:
    return lambda network: having([network], lambda n: {"config": replace(n.config, **values)})


def _sparse(**values: int) -> Change:
    return lambda network: having(modules_of(network, AdaptiveSparseSelfAttention), lambda layer: values)


def _flipped_gate(network: nn.Module) -> AbstractContextManager[None]:
    gates = [layer.gate for layer in modules_of(network, AdaptiveSparseSelfAttention)]
    return returning(gates, lambda g: -g)  # sigmoid(-g) = 1 - sigmoid(g)


@contextmanager
def _scale_first(network: nn.Module) -> Iterator[None]:
    six, two = [1, 0, 2, 4, 3, 5], [1, 0]
    with ExitStack() as stack:
        blocks = modules_of(network, DiTBlock)
        stack.enter_context(having(blocks, lambda block: {"table": _fixed(block.table[six])}))
        stack.enter_context(given(blocks, lambda args: (args[0], args[1][:, six], *args[2:])))
        stack.enter_context(having([network], lambda n: {"final_table": _fixed(n.final_table[two])}))
        yield


@contextmanager
def _plain_scale(network: nn.Module) -> Iterator[None]:
    def less(table: Tensor, rows: list[int]) -> nn.Parameter:
        changed = table.detach().clone()
        changed[rows] -= 1
        return _fixed(changed)

    with ExitStack() as stack:
        stack.enter_context(having(modules_of(network, DiTBlock), lambda block: {"table": less(block.table, [1, 4])}))
        stack.enter_context(having([network], lambda n: {"final_table": less(n.final_table, [1])}))
        yield


def _fixed(table: Tensor) -> nn.Parameter:
    return nn.Parameter(table.detach(), requires_grad=False)


def _cross_norm(network: nn.Module) -> AbstractContextManager[None]:
    layers = modules_of(network, CrossAttention)
    return given(layers, lambda args: (F.layer_norm(args[0], args[0].shape[-1:], eps=1e-6), *args[1:]))


def _unmasked(network: nn.Module) -> AbstractContextManager[None]:
    return given([network], lambda args: (*args[:3], {name: torch.ones_like(mask) for name, mask in args[3].items()}))


def _sines_first(network: nn.Module) -> AbstractContextManager[None]:
    assert isinstance(network, DiT)
    return given([network.time], lambda args: (args[0].roll(args[0].shape[1] // 2, 1),))
