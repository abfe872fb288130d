"""A student of 28 layers and one width, small, stored under the names that PixArt has in diffusers."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from snapgen_deploy.checkpoint import expected_shapes
from snapgen_deploy.checkpoint.initial import initial_tensor
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models import DiTConfig, ModelConfig, TextStream
from tests.docs.pages import ROOT, blocks

_START = {"down": 0, "middle": 8, "up": 18}
_INNER = {
    "attention.out.": "attn1.to_out.0.", "cross.out.": "attn2.to_out.0.", "cross.q.": "attn2.to_q.",
    "ffn.up.": "ff.net.0.proj.", "ffn.down.": "ff.net.2.",
    "attention.q.": "attn1.to_q.", "attention.k.": "attn1.to_k.", "attention.v.": "attn1.to_v.",
    "attention.q_norm.": "attn1.norm_q.", "attention.k_norm.": "attn1.norm_k.", "attention.": "attn1.",
}  # fmt: skip
_OUTER = {
    "patch.": "pos_embed.proj.", "time.fc": "adaln_single.emb.timestep_embedder.linear_", "time.six.": "adaln_single.linear.",
    "text.text.fc": "caption_projection.linear_", "final_table": "scale_shift_table", "unpatch.": "proj_out.",
}  # fmt: skip


def pixart_config() -> ModelConfig:
    student = DiTConfig(
        latent_channels=4, hidden=32, head_dim=8, kv_group=2, depths=(8, 10, 10), blocks=4, text_width=16, cross_dim=16,
        text_streams=(TextStream("text", 12, 6),), time_features=16, widths={"full": 1.0},
    )  # fmt: skip
    return ModelConfig(student, None, None, name="pixart-test", resolution=(64, 64))


def our_state(config: ModelConfig, spread: float = 0.1) -> dict[str, Tensor]:
    """Seeded weights, none of them constant, under our names; a large `spread` makes wide networks overflow fp16."""
    spec = components_of(config).denoiser
    made = {name: initial_tensor(spec, name.partition(".")[2], shape, 0) for name, shape in expected_shapes(config).items()}
    generator = torch.Generator().manual_seed(0)
    return {n: t + spread * torch.randn(t.shape, generator=generator) for n, t in made.items()}


def pixart_name(name: str) -> str:
    """The foreign name of one of the student's tensors that stands for itself."""
    plain = name.removeprefix("student.").partition("@")[0]
    block = re.fullmatch(r"(down|middle|up)\.(\d+)\.(.*)", plain)
    table = _OUTER if block is None else _INNER
    rest = plain if block is None else block[3]
    new = next((theirs + rest[len(ours) :] for ours, theirs in table.items() if rest.startswith(ours)), rest)
    if block is None:
        return new
    new = "scale_shift_table" if new == "table" else new
    return f"transformer_blocks.{_START[block[1]] + int(block[2])}.{new}"


def pixart_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as they are stored there, with k and v of cross-attention in one tensor."""
    found = {pixart_name(n): t for n, t in state.items() if ".cross.k." not in n and ".cross.v." not in n}
    for name, tensor in state.items():
        if ".cross.k." in name:
            both = torch.cat([tensor, state[name.replace(".k.", ".v.")]])
            found[pixart_name(name.replace(".k.", ".q.")).replace("to_q", "to_kv")] = both
    return found


PIXART_MAP = blocks(ROOT / "docs/own-checkpoint.md", "toml")[0]
