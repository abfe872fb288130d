"""The reference student: a three-stage diffusion transformer at one width, and the elastic network that holds all widths.

Shapes: latent (B, C, h, w); tokens (B, N, D) with N = H*W, H = h/patch, W = w/patch; text (B, L, T).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from snapgen_deploy.models.attention import (
    AdaptiveSparseSelfAttention,
    CrossAttention,
    FeedForward,
    SelfAttention,
    position_table,
    rope_table,
)
from snapgen_deploy.models.dit_config import STAGES, DiTConfig, StageKind
from snapgen_deploy.models.student import Stage, Student, TrainingCost
from snapgen_deploy.models.text_projection import TextProjection, text_context
from snapgen_deploy.models.time_embedding import TimeEmbedding
from snapgen_deploy.models.unfilled import without_storage

# How many maps of (tokens, hidden) and how many copies of its attention scores a block keeps for its gradients: fitted to
# `benchmarks.recipe_memory`.
MAPS, _SCORES = 32, 2


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without affine parameters, then scale and shift; x (B, N, D), shift and scale (B, 1, D)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class DiTBlock(nn.Module):
    """h -> LN -> scale/shift -> SA or ASSA -> gate -> + ; cross-attention -> + ; LN -> scale/shift -> FFN -> gate -> + ."""

    def __init__(self, config: DiTConfig, width: str, kind: StageKind, ffn_ratio: int) -> None:
        super().__init__()
        hidden, heads, kv_heads = config.hidden_at(width), config.heads_at(width), config.kv_heads_at(width)
        self.table = nn.Parameter(torch.zeros(6, hidden))
        self.attention = (
            AdaptiveSparseSelfAttention(hidden, heads, kv_heads, config.head_dim, config.blocks, config.radius)
            if kind == "assa"
            else SelfAttention(hidden, heads, kv_heads, config.head_dim)
        )
        self.cross = CrossAttention(hidden, config.text_width, config.cross_dim, config.head_dim)
        self.ffn = FeedForward(hidden, ffn_ratio)

    def forward(
        self, x: Tensor, modulation: Tensor, text: Tensor, bias: Tensor, rope: tuple[Tensor, Tensor], grid: tuple[int, int]
    ) -> Tensor:
        """x (B, N, D), modulation (B, 6, D), text (B, L, T), bias (B, 1, 1, L) -> (B, N, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.table + modulation).split(1, dim=1)  # (B, 1, D) each
        x = x + gate1 * self.attention(modulate(x, shift1, scale1), rope, grid)
        x = x + self.cross(x, text, bias)
        y: Tensor = x + gate2 * self.ffn(modulate(x, shift2, scale2))
        return y


class DenseSkip(nn.Module):
    """U-ViT's long skip: Linear(concat(x, skip)), kept as two matrices so that each slices by its leading rows and columns."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.x = nn.Linear(hidden, hidden)
        self.skip = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Both (B, N, D) -> (B, N, D)."""
        y: Tensor = self.x(x) + self.skip(skip)
        return y


class DiT(Student):
    """The student at one width."""

    config: DiTConfig

    def __init__(self, config: DiTConfig, width: str = "full") -> None:
        super().__init__()
        self.config, self.width = config, width
        hidden = config.hidden_at(width)
        self.patch = nn.Conv2d(config.latent_channels, hidden, config.patch, stride=config.patch)
        self.time = TimeEmbedding(config.time_features, hidden, config.pooled)
        self.text = nn.ModuleDict({s.name: TextProjection(s.dim, config.text_width) for s in config.text_streams})
        stages = zip(STAGES, config.depths, config.attention, config.ffn_ratios, strict=True)
        for name, depth, kind, ratio in stages:
            self.add_module(name, nn.ModuleList([DiTBlock(config, width, kind, ratio) for _ in range(depth)]))
        self.skips = nn.ModuleList([DenseSkip(hidden) for _ in range(config.depths[1] // 2)])
        self.downsample = nn.Conv2d(hidden, hidden, 2, stride=2)
        self.upsample = nn.ConvTranspose2d(hidden, hidden, 2, stride=2)
        self.final_table = nn.Parameter(torch.zeros(2, hidden))
        self.unpatch = nn.ConvTranspose2d(hidden, config.latent_channels, config.patch, stride=config.patch)

    def blocks_of(self, stage: str) -> list[DiTBlock]:
        """The blocks of one stage, in order."""
        return [b for b in self.get_submodule(stage).children() if isinstance(b, DiTBlock)]

    def training_cost(self, latent: tuple[int, int]) -> TrainingCost:
        """Image tokens of Down and Up, and estimated bytes that the gradients need of every stage's blocks.

        Maps are counted as if every stage had all tokens, scores with the quarter of the tokens that the middle stage has.
        """
        c = self.config
        rows, cols = c.grid(*latent)
        tokens, hidden, stages = rows * cols, c.hidden_at(self.width), []
        for kind, depth, n in zip(c.attention, c.depths, (tokens, tokens // 4, tokens), strict=True):
            seen = n if kind == "full" else n // 4 + min(n, n * (2 * c.radius + 1) // c.blocks)
            stages.append(Stage(depth, 4 * depth * (MAPS * tokens * hidden + _SCORES * hidden // c.head_dim * n * seen)))
        return TrainingCost(tokens, hidden, tuple(stages))

    def recomputable(self) -> list[DiTBlock]:
        """All blocks, in order."""
        return [block for stage in STAGES for block in self.blocks_of(stage)]

    def context(self, text: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Per stream (B, L_s, dim) and mask (B, L_s) with 1 = token -> text (B, L, T), bias (B, 1, 1, L).

        Absent streams are left out.

        Raises:
            ValueError: if no stream is given, or one that the configuration does not have.
        """
        return text_context(self.text, self.config.text_streams, text, mask)

    def pooled(self, vectors: Mapping[str, Tensor], rows: int) -> Tensor | None:
        """Pooled vectors (B, P_s) per stream -> (B, P), zeros for absent ones; None for a student that takes none."""
        sizes = {s.name: s.pooled for s in self.config.text_streams if s.pooled}
        like = self.time.fc1.weight
        parts = [vectors[n] if n in vectors else like.new_zeros(rows, size) for n, size in sizes.items()]
        return torch.cat(parts, dim=1) if parts else None

    def forward(
        self,
        latent: Tensor,
        features: Tensor,
        text: Mapping[str, Tensor],
        mask: Mapping[str, Tensor],
        pooled: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """latent (B, C, h, w), features (B, F), text, mask and pooled vectors per stream -> velocity (B, C, h, w)."""
        problems = self.config.grid_problems(*latent.shape[2:])
        if problems:
            raise ValueError(problems[0])
        grid = self.config.grid(*latent.shape[2:])
        half = (grid[0] // 2, grid[1] // 2)
        head_dim, theta = self.config.head_dim, self.config.rope_theta
        ropes = {g: tuple(t.to(latent.device) for t in rope_table(*g, head_dim, theta)) for g in (grid, half)}
        embedding, six = self.time(features, self.pooled(pooled or {}, len(features)))  # (B, D), (B, 6, D)
        context, bias = self.context(text, mask)  # (B, L, T), (B, 1, 1, L)

        x = self.patch(latent).flatten(2).transpose(1, 2)  # (B, N, D)
        if self.config.absolute_positions:
            x = x + position_table(*grid, self.config.hidden, x.shape[2]).to(x)  # (B, N, D)
        for block in self.blocks_of("down"):
            x = block(x, six, context, bias, ropes[grid], grid)  # (B, N, D)

        x = self.downsample(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)  # (B, N/4, D)
        middle = self.blocks_of("middle")
        kept: list[Tensor] = []
        for i, block in enumerate(middle):
            mirror = i - (len(middle) - len(self.skips))
            if mirror >= 0:
                x = self.skips[mirror](x, kept.pop())  # (B, N/4, D)
            x = block(x, six, context, bias, ropes[half], half)  # (B, N/4, D)
            if i < len(self.skips):
                kept.append(x)
        x = self.upsample(x.transpose(1, 2).unflatten(2, half)).flatten(2).transpose(1, 2)  # (B, N, D)

        for block in self.blocks_of("up"):
            x = block(x, six, context, bias, ropes[grid], grid)  # (B, N, D)
        shift, scale = (self.final_table + embedding[:, None]).split(1, dim=1)  # (B, 1, D) each
        x = modulate(x, shift, scale)  # (B, N, D)
        velocity: Tensor = self.unpatch(x.transpose(1, 2).unflatten(2, grid))  # (B, C, h, w)
        return velocity


# Norms and modulation are separate per width (published); every other tensor is shared, a sub-network owning its leading part.


def is_per_width(name: str) -> bool:
    """Whether the student's tensor `name` exists once per width."""
    leaf = name.rsplit(".", 2)
    return name.startswith("time.") or name.endswith("table") or (len(leaf) > 1 and leaf[-2] in ("q_norm", "k_norm"))


def elastic_name(name: str, width: str) -> str:
    """Name in the elastic checkpoint of the tensor that the student at `width` calls `name`."""
    return f"{name}@{width}" if is_per_width(name) else name


class ElasticDiT(nn.Module):
    """The supernetwork: one set of shared tensors, and norms and modulation per width."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.tensors = nn.ParameterDict()
        self._subnets: dict[str, DiT] = {}  # skeletons without storage; a dict, so that they are no submodules
        for width in config.widths:
            with without_storage():
                self._subnets[width] = DiT(config, width)
            source = DiT(config, width)
            largest = config.widths[width] == max(config.widths.values())
            for name, tensor in source.named_parameters():
                if is_per_width(name) or largest:
                    self.tensors[_key(elastic_name(name, width))] = nn.Parameter(tensor.detach())

    def sliced(self, width: str) -> dict[str, Tensor]:
        """State of the student at `width`, as views of the shared tensors."""
        return {
            name: self.tensors[_key(elastic_name(name, width))][tuple(slice(0, n) for n in like.shape)]
            for name, like in self._subnets[width].named_parameters()
        }

    def elastic_state(self) -> dict[str, Tensor]:
        """All tensors under their names in a checkpoint (without the component's prefix)."""
        return {key.replace("/", "."): tensor.detach() for key, tensor in self.tensors.items()}

    def forward(
        self,
        latent: Tensor,
        features: Tensor,
        text: Mapping[str, Tensor],
        mask: Mapping[str, Tensor],
        width: str = "full",
        pooled: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """As `DiT.forward`, at the given width."""
        given = (latent, features, dict(text), dict(mask), dict(pooled or {}))
        velocity: Tensor = functional_call(self._subnets[width], self.sliced(width), given)
        return velocity


def _key(name: str) -> str:
    """ParameterDict forbids dots in keys."""
    return name.replace(".", "/")
