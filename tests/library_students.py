"""Small students of each class of diffusers, in the folders that the library writes, with weights that exercise every path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from snapgen_deploy.models.config import TextStream
from snapgen_deploy.models.diffusers_classes import CLASS
from snapgen_deploy.models.library_student import DiffusersStudent, StudentText, build_student
from snapgen_deploy.models.schedule import Schedule
from snapgen_deploy.models.students import LibraryStudent
from tests.library_decoders import filled

WEIGHTS = "diffusion_pytorch_model.safetensors"
_PIXART = {
    CLASS: "PixArtTransformer2DModel", "in_channels": 4, "out_channels": 8, "num_layers": 2, "num_attention_heads": 2,
    "attention_head_dim": 12, "patch_size": 2, "sample_size": 8, "caption_channels": 20, "cross_attention_dim": 24,
    "norm_type": "ada_norm_single", "use_additional_conditions": True,
}  # fmt: skip
_SANA = {
    CLASS: "SanaTransformer2DModel", "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_attention_heads": 3,
    "attention_head_dim": 8, "num_cross_attention_heads": 2, "cross_attention_head_dim": 12, "cross_attention_dim": 24,
    "caption_channels": 20, "mlp_ratio": 2.5, "sample_size": 8, "patch_size": 1, "guidance_embeds": True,
    "qk_norm": "rms_norm_across_heads",
}  # fmt: skip
_SD3 = {
    CLASS: "SD3Transformer2DModel", "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_attention_heads": 2,
    "attention_head_dim": 12, "joint_attention_dim": 40, "caption_projection_dim": 24, "pooled_projection_dim": 32,
    "patch_size": 2, "sample_size": 8, "pos_embed_max_size": 8, "dual_attention_layers": [], "qk_norm": None,
}  # fmt: skip
_FLUX = {
    CLASS: "FluxTransformer2DModel", "in_channels": 16, "num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2,
    "attention_head_dim": 16, "joint_attention_dim": 20, "pooled_projection_dim": 12, "axes_dims_rope": [4, 6, 6],
    "guidance_embeds": False, "patch_size": 1,
}  # fmt: skip
_LEVELS = {
    CLASS: "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "sample_size": 8, "block_out_channels": [16, 32],
    "layers_per_block": 1, "cross_attention_dim": 20, "attention_head_dim": [2, 4], "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
_DREAMLITE = {
    CLASS: "DreamLiteUNetModel", "in_channels": 4, "out_channels": 4, "sample_size": 8, "block_out_channels": [16, 32, 48],
    "layers_per_block": 1, "cross_attention_dim": 24, "attention_head_dim": [2, 4, 6], "norm_num_groups": 4,
    "down_block_types": ["DreamLiteDownBlock2D", "DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"],
    "up_block_types": ["DreamLiteCrossAttnUpBlock2D", "DreamLiteCrossAttnNoSelfAttnUpBlock2D", "DreamLiteUpBlock2D"],
    "transformer_layers_per_block": [1, 1, 2], "ff_mult": 3, "encoder_hid_dim": 20, "encoder_hid_dim_type": "text_proj_rms",
    "addition_embed_type": "time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 16,
}  # fmt: skip
# Every class, and what other versions of them do otherwise.
CASES: Mapping[str, Mapping[str, Any]] = {
    "pixart": _PIXART,
    "pixart-sigma": {**_PIXART, "use_additional_conditions": False, "out_channels": 4},
    "sana-sprint": _SANA,
    "sd3": _SD3,
    "sd3.5": {**_SD3, "dual_attention_layers": [0], "qk_norm": "rms_norm"},
    "flux": _FLUX,
    "flux-dev": {**_FLUX, "guidance_embeds": True},
    "sd": _LEVELS,
    "sdxl": {
        **_LEVELS,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "use_linear_projection": True,
        "projection_class_embeddings_input_dim": 60,
        "transformer_layers_per_block": [1, 2],
    },
    "sdxs": {**_LEVELS, "mid_block_type": None},
    "dreamlite": _DREAMLITE,
    "dreamlite-plain": {  # every head with keys of its own, whole convolutions, text as it is
        **_DREAMLITE,
        "num_kv_heads": None,
        "qk_norm": None,
        "use_sep_conv": False,
        "addition_embed_type": None,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "num_mid_layers": 2,
    },
    "dreamlite-grouped": {**_DREAMLITE, "num_kv_heads": 2, "encoder_hid_dim_type": "text_proj"},
    "sana": {**_SANA, "guidance_embeds": False, "qk_norm": None, "patch_size": 2, "interpolation_scale": 1.0},
}
FLOW = {CLASS: "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
DYNAMIC = {CLASS: "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "shift": 3.0}
SCM = {CLASS: "SCMScheduler", "prediction_type": "trigflow", "sigma_data": 0.5}
LCM = {CLASS: "LCMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LENGTH = 6  # tokens of each text


def config_of(name: str, scheduler: Mapping[str, Any] = FLOW, **changes: object) -> LibraryStudent:
    config = {**CASES[name], **changes}
    found = LibraryStudent("diffusers", config, dict(scheduler), 8, (TextStream("text", 20, LENGTH),))
    streams = tuple(TextStream(s["name"], s["dim"], LENGTH, s.get("pooled", 0)) for s in found.facts.streams())
    guidance = 4.5 if found.facts.embeds_guidance else 0.0
    return LibraryStudent("diffusers", config, dict(scheduler), 8, streams, guidance)


def pair(config: LibraryStudent, seed: int = 0) -> tuple[Any, DiffusersStudent]:
    """The library's network, and the reference with the same tensors."""
    whole = filled(build_student(config), seed)
    reference = DiffusersStudent(config)
    reference.network.load_state_dict(whole.state_dict(), strict=True)
    return whole, reference.requires_grad_(False)


def texts(config: LibraryStudent, rows: int = 1, seed: int = 1) -> StudentText:
    """Seeded text; the last row's second half is padding."""
    generator = torch.Generator().manual_seed(seed)
    streams = config.text_streams
    text = {s.name: torch.randn(rows, s.length, s.dim, generator=generator) for s in streams}
    mask = {s.name: torch.ones(rows, s.length) for s in streams}
    for value in mask.values():
        value[-1, LENGTH // 2 :] = 0.0
    pooled = {s.name: torch.randn(rows, s.pooled, generator=generator) for s in streams if s.pooled}
    return StudentText(text, mask, pooled)


def as_inputs(config: LibraryStudent, text: StudentText) -> list[Tensor]:
    """The text in the order of the student's ports."""
    found = [value for s in config.text_streams for value in (text.text[s.name], text.mask[s.name])]
    return found + [text.pooled[s.name] for s in config.text_streams if s.pooled]


def timesteps_of(schedule: Schedule) -> list[float]:
    return list(schedule.timesteps or [1000.0 * level for level in schedule.sigmas[:-1]])


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def save_pipeline(config: LibraryStudent, folder: Path, seed: int = 0) -> None:
    """Transformer and scheduler as the library's `save_pretrained` writes them, and the index of a pipeline."""
    unet = "UNet" in config.config[CLASS]
    part = folder / ("unet" if unet else "transformer")
    part.mkdir(parents=True)
    (part / "config.json").write_text(json.dumps(config.config))
    save_file({n: t.contiguous() for n, t in filled(build_student(config), seed).state_dict().items()}, part / WEIGHTS)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config.scheduler))
    index = {
        CLASS: "Pipeline", part.name: ["diffusers", config.config[CLASS]],
        "scheduler": ["diffusers", config.scheduler[CLASS]], "text_encoder": [None, None],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
