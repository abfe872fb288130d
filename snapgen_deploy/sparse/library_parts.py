"""What a text encoder of transformers is made of, whatever its class: the library's own tensors, and constants.

The parts keep references to the library's layers, no copies; masks, rotary tables and relative positions are computed by the
library's modules where it has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from snapgen_deploy.models.attention import MASKED
from snapgen_deploy.models.library_text import LAST, LEGACY_END, LibraryText, activation_of
from snapgen_deploy.models.unfilled import without_storage
from snapgen_deploy.sparse.geometry import Heads

# Of T5's hidden states in half precision. Those of published encoders, and the products in their feed-forward layers, go beyond
# its 65504; no norm sees the factor, and a power of two costs no bits.
_T5_FACTOR = 2.0**-6
ALL_BEFORE, WINDOW_BEFORE = "full", "sliding"  # kinds of layers: each has its own mask and rotary table


RotaryTable = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class NormParts:
    """A LayerNorm, or an RMSNorm (not centred)."""

    weight: Tensor
    bias: Tensor | None
    eps: float
    centred: bool


@dataclass(frozen=True)
class LayerParts:
    """One layer: x + after(out(attention(before(x)))), twice, the second time with the feed-forward layer."""

    kind: str  # `ALL_BEFORE` or `WINDOW_BEFORE`
    heads: Heads
    scale: float  # of the scores
    cap: float | None  # scores become cap tanh(scores / cap)
    norm1: NormParts
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    out: nn.Linear
    q_norm: NormParts | None
    k_norm: NormParts | None
    after1: NormParts | None
    norm2: NormParts
    gate: nn.Linear | None  # the activation is applied to it, and to `up` where there is none
    up: nn.Linear
    down: nn.Linear
    after2: NormParts | None
    factor: float = 1.0  # of what is added to the hidden states


@dataclass(frozen=True)
class PoolParts:
    """The pooled vector: the last hidden state, normed, where the text ends, and its projection."""

    end: int | None  # the id that ends a text; None: the highest one does
    norm: NormParts
    projection: nn.Linear | None


@dataclass(frozen=True)
class TextParts:
    """The whole network, without the layers that the wanted outputs do not need."""

    tokens: nn.Embedding
    scale: float  # of the token embeddings
    positions: Tensor | None  # (L, D), added to them
    layers: tuple[LayerParts, ...]
    activation: str
    norm: NormParts | None  # after the layers before the wanted embeddings
    bias: Mapping[str, Tensor]  # (1 or h, L, L) per kind of layer, added to the scores: causal mask and relative positions
    ropes: Mapping[str, tuple[Tensor, Tensor]]  # C and S (L, d) per kind, see `fold.rope_constants`
    depth: int  # layers before the wanted embeddings; the others are for the pooled vector
    pool: PoolParts | None = None
    factor: float = 1.0  # of the hidden states in half precision
    undone: float = 1.0  # what undoes it in embeddings without a norm


def in_half(parts: TextParts) -> TextParts:
    """The parts with hidden states that half precision holds: embeddings, and what layers add to them, have the factor."""
    if (factor := parts.factor) == 1.0:
        return parts

    def norm(of: NormParts) -> NormParts:
        return replace(of, eps=of.eps * factor**2)

    layers = tuple(replace(p, norm1=norm(p.norm1), norm2=norm(p.norm2), factor=factor) for p in parts.layers)
    last = None if parts.norm is None else norm(parts.norm)
    undone = 1.0 / factor if last is None else 1.0
    return replace(parts, scale=parts.scale * factor, layers=layers, norm=last, undone=undone)


def parts_of(network: LibraryText) -> TextParts:
    """Take a network apart. The constants are for the configured length."""
    return _READERS[network.settings.model_type](network)


def _clip(network: LibraryText) -> TextParts:
    model, length, pooled = network.model.text_model, network.config.length, network.config.pooled
    depth, end = _depth(network), model.eos_token_id
    projection = network.text_projection if pooled == "projected" else None
    return TextParts(
        tokens=model.embeddings.token_embedding,
        scale=1.0,
        positions=model.embeddings.position_embedding.weight.detach()[:length],
        layers=tuple(_clip_layer(layer) for layer in model.encoder.layers[: depth if pooled == "no" else None]),
        activation=activation_of(network.settings),
        norm=_norm(network.final_norm) if _is_normed(network) else None,
        bias={ALL_BEFORE: _causal(length, length)[None]},
        ropes={},
        depth=depth,
        pool=None if pooled == "no" else PoolParts(None if end == LEGACY_END else end, _norm(network.final_norm), projection),
    )


def _clip_layer(layer: Any) -> LayerParts:
    a, mlp = layer.self_attn, layer.mlp
    return LayerParts(
        kind=ALL_BEFORE, heads=Heads(a.num_heads, a.num_heads, a.head_dim), scale=a.scale, cap=None,
        norm1=_norm(layer.layer_norm1), q=a.q_proj, k=a.k_proj, v=a.v_proj, out=a.out_proj, q_norm=None, k_norm=None,
        after1=None, norm2=_norm(layer.layer_norm2), gate=None, up=mlp.fc1, down=mlp.fc2, after2=None,
    )  # fmt: skip


def _t5(network: LibraryText) -> TextParts:
    model, length = network.model, network.config.length
    first = model.block[0].layer[0].SelfAttention
    with torch.no_grad():
        bias = first.compute_bias(length, length)[0]  # (h, L, L)
    return TextParts(
        tokens=model.embed_tokens,
        scale=1.0,
        positions=None,
        layers=tuple(_t5_layer(block) for block in model.block[: _depth(network)]),
        activation=activation_of(network.settings),
        norm=_norm(network.final_norm) if _is_normed(network) else None,
        bias={ALL_BEFORE: bias},
        ropes={},
        depth=_depth(network),
        factor=_T5_FACTOR,
    )


def _t5_layer(block: Any) -> LayerParts:
    a, ff = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
    gated = hasattr(ff, "wi_0")
    return LayerParts(
        kind=ALL_BEFORE, heads=Heads(a.n_heads, a.n_heads, a.key_value_proj_dim), scale=1.0, cap=None,
        norm1=_norm(block.layer[0].layer_norm), q=a.q, k=a.k, v=a.v, out=a.o, q_norm=None, k_norm=None, after1=None,
        norm2=_norm(block.layer[1].layer_norm), gate=ff.wi_0 if gated else None, up=ff.wi_1 if gated else ff.wi, down=ff.wo,
        after2=None,
    )  # fmt: skip


def _decoder(network: LibraryText) -> TextParts:
    """Gemma, Llama and Qwen."""
    model, settings, length = network.model, network.settings, network.config.length
    layers = tuple(_decoder_layer(layer, settings) for layer in model.layers[: _depth(network)])
    window = getattr(settings, "sliding_window", None) or length
    local = getattr(model, "rotary_emb_local", model.rotary_emb)
    tables = {ALL_BEFORE: _rope(model.rotary_emb, length), WINDOW_BEFORE: _rope(local, length)}
    biases = {ALL_BEFORE: _causal(length, length)[None], WINDOW_BEFORE: _causal(length, window)[None]}
    kinds = {layer.kind for layer in layers}
    return TextParts(
        tokens=_table(model.embed_tokens.weight),  # Gemma 3's own module scales by itself
        scale=settings.hidden_size**0.5 if settings.model_type.startswith("gemma") else 1.0,
        positions=None,
        layers=layers,
        activation=activation_of(settings),
        norm=_norm(network.final_norm) if _is_normed(network) else None,
        bias={kind: value for kind, value in biases.items() if kind in kinds},
        ropes={kind: value for kind, value in tables.items() if kind in kinds},
        depth=_depth(network),
    )


def _decoder_layer(layer: Any, settings: Any) -> LayerParts:
    a, mlp = layer.self_attn, layer.mlp
    heads = Heads(settings.num_attention_heads, settings.num_key_value_heads, a.head_dim)
    sandwich = hasattr(layer, "pre_feedforward_layernorm")  # Gemma's norms around attention and feed-forward layer
    after1 = layer.post_attention_layernorm if sandwich else None
    return LayerParts(
        kind=WINDOW_BEFORE if getattr(layer, "attention_type", "") == "sliding_attention" else ALL_BEFORE,
        heads=heads,
        scale=a.scaling,
        cap=settings.attn_logit_softcapping if settings.model_type == "gemma2" else None,  # Gemma 3 has the setting unused
        norm1=_norm(layer.input_layernorm), q=a.q_proj, k=a.k_proj, v=a.v_proj, out=a.o_proj,
        q_norm=_norm(a.q_norm) if hasattr(a, "q_norm") else None, k_norm=_norm(a.k_norm) if hasattr(a, "k_norm") else None,
        after1=None if after1 is None else _norm(after1),
        norm2=_norm(layer.pre_feedforward_layernorm if sandwich else layer.post_attention_layernorm),
        gate=mlp.gate_proj, up=mlp.up_proj, down=mlp.down_proj,
        after2=_norm(layer.post_feedforward_layernorm) if sandwich else None,
    )  # fmt: skip


_READERS: Mapping[str, Callable[[LibraryText], TextParts]] = MappingProxyType(
    {
        "clip_text_model": _clip,
        "t5": _t5,
        **dict.fromkeys(("gemma2", "gemma3_text", "llama", "qwen2", "qwen3", "qwen3_vl_text"), _decoder),
    }
)


def _table(weight: Tensor) -> nn.Embedding:
    """An embedding around existing weights: no copy."""
    with without_storage():
        table = nn.Embedding(*weight.shape)
    table.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return table


def _depth(network: LibraryText) -> int:
    """Layers before the wanted hidden state."""
    count, layer = int(network.settings.num_hidden_layers), network.config.layer
    return count if layer == LAST else layer % (count + 1)


def _is_normed(network: LibraryText) -> bool:
    """Whether the final norm is applied: the library's last hidden state has it, and so has the last of all but CLIP's."""
    config, count = network.config, network.settings.num_hidden_layers
    last = config.layer == LAST or (_depth(network) == count and network.settings.model_type != "clip_text_model")
    return last or config.normed


def _norm(norm: Any) -> NormParts:
    if isinstance(norm, nn.LayerNorm):
        return NormParts(norm.weight.detach(), norm.bias.detach(), norm.eps, centred=True)
    eps = next(getattr(norm, name) for name in ("variance_epsilon", "eps") if hasattr(norm, name))
    weight = norm.weight.detach()
    return NormParts(1.0 + weight if type(norm).__name__.startswith("Gemma") else weight, None, eps, centred=False)


def _causal(length: int, window: int) -> Tensor:
    """(L, L): 0 where token i sees token j, that is itself and `window` - 1 tokens before it."""
    behind = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    return ((behind < 0) | (behind >= window)).float() * MASKED


def _rope(module: Any, length: int) -> tuple[Tensor, Tensor]:
    """The library's rotary table with the sign that its `rotate_half` gives to the first half.

    Without storage it has a shape alone: the library turns autocasting off, and torch knows none for the meta device.
    """
    if module.inv_freq.is_meta:
        tables = torch.empty(2, length, 2 * module.inv_freq.numel(), device="meta")
        return tables[0], tables[1]
    with torch.no_grad():
        cos, sin = module(torch.zeros(1), torch.arange(length)[None])  # (1, L, d)
    half = sin.shape[2] // 2
    return cos[0].float(), torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=1).float()


class TextEnd(nn.Module):
    """Where texts end, as transformers finds it, without an index: the first token with the id, else the first of all."""

    before: Tensor
    all: Tensor
    first: Tensor

    def __init__(self, end: int | None, length: int) -> None:
        super().__init__()
        self.end = end
        self.register_buffer("before", torch.ones(1, length, length).triu(1))  # of the tokens before each
        self.register_buffer("all", torch.ones(1, length, 1))
        self.register_buffer("first", (torch.arange(length) == 0).float().reshape(1, 1, length))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (1, L) -> (1, 1, L), 1 at the end and 0 elsewhere."""
        ends = tokens == (tokens.amax(1, keepdim=True) if self.end is None else self.end)
        found = ends.to(self.before.dtype).reshape(1, 1, -1)
        chosen = found * (1.0 - torch.bmm(found, self.before)).clamp(min=0.0)
        if self.end is None:
            return chosen
        return chosen + self.first * (1.0 - torch.bmm(found, self.all)).clamp(min=0.0)


class LibraryLayer(nn.Module):
    """A layer's residual paths, the same in every layout; a subclass makes the modules and adds its attention."""

    norm1: nn.Module
    norm2: nn.Module
    after1: nn.Module | None
    after2: nn.Module | None
    out: nn.Module
    gate: nn.Module | None
    up: nn.Module
    down: nn.Module
    act: Callable[[Tensor], Tensor]
    factor: float

    def forward(self, x: Tensor, bias: Tensor, rope: RotaryTable | None) -> Tensor:
        """Hidden states and the attention's bias, both in the layout's shapes -> hidden states."""
        y = self.out(self._times_factor(self.attention(self.norm1(x), bias, rope)))
        x = x + (y if self.after1 is None else self.after1(y))
        y = self.norm2(x)
        inner = self._times_factor(self.act((self.up if self.gate is None else self.gate)(y)))
        y = self.down(inner if self.gate is None else inner * self.up(y))
        out: Tensor = x + (y if self.after2 is None else self.after2(y))
        return out

    def _times_factor(self, x: Tensor) -> Tensor:
        return x if self.factor == 1.0 else x * self.factor

    def attention(self, x: Tensor, bias: Tensor, rope: RotaryTable | None) -> Tensor:
        """Attention of the heads, before the output's projection."""
        raise NotImplementedError
