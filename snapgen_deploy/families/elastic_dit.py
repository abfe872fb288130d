"""SnapGen++'s elastic diffusion transformer as a family."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from snapgen_deploy.families.base import Folding, Layer, SizeRule
from snapgen_deploy.families.component import (
    VELOCITY,
    Components,
    ComponentSpec,
    Initial,
    Shape,
    Spelling,
    StoredTensor,
    initial,
    initial_overlap_free,
)
from snapgen_deploy.families.decoder import decoder
from snapgen_deploy.families.dit_variants import dit_variants
from snapgen_deploy.families.names import STUDENT
from snapgen_deploy.families.ports import stepped, student_ports
from snapgen_deploy.families.text import text_encoders
from snapgen_deploy.models.attention import AdaptiveSparseSelfAttention
from snapgen_deploy.models.config import ModelConfig, TextStream
from snapgen_deploy.models.dit import DiT, elastic_name, is_per_width
from snapgen_deploy.models.dit_config import STAGES, DiTConfig, dit_of
from snapgen_deploy.models.schedule import Schedule, sigmas
from snapgen_deploy.models.unfilled import without_storage
from snapgen_deploy.sparse import FORMS, Layout, OpForm, rewrite_student
from snapgen_deploy.sparse.fold import rope_constants
from snapgen_deploy.sparse.geometry import windows
from snapgen_deploy.sparse.token_layers import TokenSparseAttention
from snapgen_deploy.sparse.with_rope import WithRope

# The default kernel form of the local attention (`export --tune` measures instead). For 4096 tokens, 16 heads,
# B = 16, r = 1, fp32, on two x86-64 threads, the loop over blocks took 58 ms against 74 (batched) and 64 (per head) in
# onnxruntime 1.31, and 139 against 164 and 141 in ExecuTorch 1.4.1 with XNNPACK. On small maps all forms run in a few ms, and
# the batched one has the fewest operators to lower and load.
# On the Neural Engine the loop over blocks is what SnapGen++ describes (arXiv 2601.08303).
LARGE_MAP_FORM, SMALL_MAP_FORM = "loop", "batched"
SMALL_MAP_TOKENS = 1024


class ElasticDiTFamily:
    """Three stages of blocks with sparse self-attention, sliced to a width."""

    name = "elastic-dit"
    student_type = DiTConfig

    def components(self, config: ModelConfig) -> Components:
        """The components of a configuration."""
        return Components(text_encoders(config), _student(dit_of(config)), decoder(config))

    def schedule(self, config: ModelConfig) -> Schedule:
        """By default four steps at a time shift of 3."""
        return Schedule(sigmas(config.steps, config.shift), config.shift, config.student.time_features)

    def size_rule(self, config: ModelConfig) -> SizeRule:
        """Patches, the 2x2 compression and the blocks of the local attention."""
        dit = dit_of(config)
        constraints = f"latent factor {dit.latent_factor}, patch {dit.patch} and {dit.blocks} blocks"
        # one side of `blocks` units always fits
        return SizeRule(dit.latent_factor * dit.patch * 2, constraints, 4 * dit.blocks + 10)

    def size_problems(self, config: ModelConfig, latent: tuple[int, int]) -> list[str]:
        """Why a latent does not fit."""
        return dit_of(config).grid_problems(*latent)

    def form(self, config: ModelConfig, latent: tuple[int, int]) -> str:
        """The default kernel form of the local attention."""
        rows, cols = dit_of(config).grid(*latent)
        return SMALL_MAP_FORM if rows * cols <= SMALL_MAP_TOKENS else LARGE_MAP_FORM

    def facts(self, config: ModelConfig, width: str) -> dict[str, int]:
        """Hidden width and heads."""
        dit = dit_of(config)
        return {"hidden": dit.hidden_at(width), "heads": dit.heads_at(width), "kv_heads": dit.kv_heads_at(width)}

    def forms(self, config: ModelConfig, width: str, latent: tuple[int, int], ops: OpForm) -> Mapping[str, Layer]:
        """The first stage's sparse self-attention in every form; none for a student without it."""
        dit = dit_of(config)
        return sparse_attention(dit, width, dit.grid(*latent), ops) if "assa" in dit.attention else {}

    def folding(self, config: ModelConfig, latent: tuple[int, int], layout: Layout, form: str) -> Folding:
        """The query heads of a group are folded into one matrix; heads of cross-attention have no groups."""
        dit = dit_of(config)
        rows, cols = dit.grid(*latent)
        text = sum(s.length for s in dit.text_streams)
        heads = 1 if (layout, form) == ("channels", "per_head") else dit.kv_group
        return Folding(heads, frozenset(tokens * text for tokens in (rows * cols, rows * cols // 4)))

    def examples(self, ops: OpForm) -> Sequence[Layer]:
        """Students that run in a few milliseconds."""
        return example_students(ops)


def _student(config: DiTConfig) -> ComponentSpec:
    """The student of a configuration."""
    return ComponentSpec(
        name=STUDENT,
        part="denoise",
        output=VELOCITY,
        build=partial(DiT, config),
        ports=partial(student_ports, config),
        apply=partial(stepped, config.text_streams),
        rewrite=_rewrite,
        folder="transformer",
        hyperparameters=partial(_hyperparameters, config),
        activations=partial(_activations, config),
        stored=lambda name, width: StoredTensor(elastic_name(name, width), whole=is_per_width(name)),
        shapes=partial(_shapes, config),
        initial=_initial,
        variants=dit_variants,
        holds=_holds,
        layers=sum(config.depths) * len(config.widths),
        elastic=True,
        has_forms=True,
        takes_recipe=True,
        must_pack=True,
    )


def _rewrite(network: nn.Module, latent: tuple[int, int], how: Spelling) -> nn.Module:
    assert isinstance(network, DiT)
    return rewrite_student(
        network,
        latent,
        layout=how.layout,
        form=how.form,
        batch=how.batch,
        ops=how.ops,
        keep_weights=how.keep_weights,
    )


def _shapes(config: DiTConfig) -> dict[str, Shape]:
    """As `ElasticDiT.elastic_state` has them, without its second network for each width."""
    found: dict[str, Shape] = {}
    largest = max(config.widths.values())
    for width, ratio in config.widths.items():
        with without_storage():
            network = DiT(config, width)
        for name, tensor in network.named_parameters():
            if is_per_width(name) or ratio == largest:
                found[elastic_name(name, width)] = tuple(tensor.shape)
    return found


def _initial(name: str, shape: Shape) -> Initial:
    """As PixArt-alpha (arXiv 2310.00426): tables D^-1/2, the modulation's last layer 0.02, so that gates are small but open.

    The 2x2 compression averages.
    """
    if "compress.weight" in name:
        return Initial(0.0, mean=1.0 / math.prod(shape[1:]))
    if name.endswith("table"):
        return Initial(shape[-1] ** -0.5)
    if name.endswith("time.six.weight"):
        return Initial(0.02)
    return initial_overlap_free(shape) if name.endswith(("upsample.weight", "unpatch.weight")) else initial(name, shape)


def _holds(tensors: Collection[str], width: str) -> bool:
    """Whether there are tensors of this width alone."""
    return any(name.startswith(f"{STUDENT}.") and name.endswith(f"@{width}") for name in tensors)


def _hyperparameters(config: DiTConfig, width: str) -> dict[str, object]:
    found: dict[str, object] = config.written()
    if width:
        found |= {
            "width": width,
            "hidden_size": config.hidden_at(width),
            "num_attention_heads": config.heads_at(width),
            "num_key_value_heads": config.kv_heads_at(width),
        }
    return found


def _activations(config: DiTConfig, width: str, latent: tuple[int, int, int], size: tuple[int, int]) -> int:
    """Bytes of the residual stream, the FFN's inner map, and the scores of all heads of the largest attention.

    N tokens, hidden width D: N * (2 D + r D) + h * Q * M elements of 4 bytes, r the FFN's ratio; of full attention Q and M are
    N, of ASSA's global branch N and the N/4 compressed keys, of its local branch those of the largest window, of the text's
    N and its tokens.
    """
    rows, cols = config.grid(latent[1], latent[2])
    tokens, hidden, heads = rows * cols, config.hidden_at(width), config.heads_at(width)
    text = sum(s.length for s in config.text_streams)
    scores = [config.cross_dim // config.head_dim * tokens * text]
    for stage, kind in zip(STAGES, config.attention, strict=True):
        queries = tokens // 4 if stage == "middle" else tokens
        if kind == "assa":
            local = max(w.length * w.key_length for w in windows(queries, config.blocks, config.radius))
            scores += [heads * queries * (queries // 4), heads * local]
        else:
            scores.append(heads * queries * queries)
    return 4 * (tokens * hidden * (2 + max(config.ffn_ratios)) + max(scores))


def sparse_attention(config: DiTConfig, width: str, grid: tuple[int, int], ops: OpForm) -> Mapping[str, Layer]:
    """The sparse self-attention of the first stage in every kernel form of the token layout."""
    layer = untrained(config, width)
    rope, shape = rope_constants(*grid, config.head_dim, config.rope_theta), (1, grid[0] * grid[1], config.hidden_at(width))
    modules = {name: WithRope(TokenSparseAttention(layer, 1, ops, grid, form), rope) for name, form in FORMS.items()}
    return {name: Layer(name, module, (shape,)) for name, module in modules.items()}


def untrained(config: DiTConfig, width: str) -> AdaptiveSparseSelfAttention:
    """The sparse self-attention of a student's first stage, with seeded weights."""
    torch.manual_seed(0)
    heads, kv_heads = config.heads_at(width), config.kv_heads_at(width)
    layer = AdaptiveSparseSelfAttention(config.hidden_at(width), heads, kv_heads, config.head_dim, config.blocks, config.radius)
    return layer.requires_grad_(False)


def example_students(ops: OpForm) -> list[Layer]:
    """Complete students in the token layout that run in a few milliseconds."""
    found = []
    for hidden, head, depths, blocks, side, form in (
        (96, 48, (1, 1, 1), 6, 24, "batched"), (160, 40, (1, 1, 1), 10, 40, "batched"), (160, 16, (2, 2, 2), 4, 24, "batched"),
        (224, 56, (1, 2, 1), 7, 56, "loop"), (320, 40, (1, 4, 1), 9, 24, "batched"),
    ):  # fmt: skip
        config = DiTConfig(
            latent_channels=4, hidden=hidden, head_dim=head, depths=depths, blocks=blocks, cross_dim=head * 3, text_width=96,
            text_streams=(TextStream("text", 96, 24),), widths={"only": 1.0},
        )  # fmt: skip
        student = rewrite_student(DiT(config, "only"), (side, side), layout="token", form=form, ops=ops)
        shapes = ((1, 4, side, side), (1, config.time_features), (1, 24, 96), (1, 24))
        found.append(Layer(f"student {side} {hidden} {head} {depths}", student, shapes))
    return found
