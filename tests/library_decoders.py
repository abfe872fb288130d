"""Small decoders of each class of diffusers, with weights that exercise every path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snapgen_deploy.models.config import LibraryDecoder
from snapgen_deploy.models.diffusers_classes import CLASS
from snapgen_deploy.models.library_decoder import DiffusersDecoder, build_autoencoder

_VIDEO = {
    "base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "temperal_downsample": [True], "num_res_blocks": 1,
    "latents_mean": [0.1, -0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 0.5, 3.0],
}  # fmt: skip
_DC = {
    "latent_channels": 4, "attention_head_dim": 8, "scaling_factor": 0.41407, "encoder_block_types": "ResBlock",
    "encoder_block_out_channels": [16, 16, 32], "encoder_layers_per_block": [1, 1, 1], "encoder_qkv_multiscales": [[], [], []],
    "decoder_block_types": ["ResBlock", "EfficientViTBlock", "EfficientViTBlock"], "decoder_qkv_multiscales": [[], [3], [5]],
    "decoder_block_out_channels": [16, 16, 32], "decoder_layers_per_block": [1, 1, 1],
}  # fmt: skip
# Every class, and what other versions of them do otherwise.
CASES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        CLASS: "AutoencoderTiny", "latent_channels": 4, "encoder_block_out_channels": [8], "num_encoder_blocks": [1],
        "decoder_block_out_channels": [8, 8, 8, 8], "num_decoder_blocks": [1, 1, 0, 1], "scaling_factor": 1.5,
        "shift_factor": 0.25,
    },
    "kl": {
        CLASS: "AutoencoderKL", "latent_channels": 4, "block_out_channels": [8, 16], "layers_per_block": 1,
        "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "norm_num_groups": 4,
        "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False,
    },
    "kl-post": {
        CLASS: "AutoencoderKL", "latent_channels": 4, "block_out_channels": [8, 8], "layers_per_block": 1,
        "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "norm_num_groups": 4,
        "scaling_factor": 0.5, "latents_mean": [0.1, -0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 0.5, 3.0],
        "mid_block_add_attention": False,
    },
    "dc": {CLASS: "AutoencoderDC", **_DC},
    "dc-interpolate": {
        CLASS: "AutoencoderDC", **_DC, "upsample_block_type": "interpolate", "decoder_qkv_multiscales": [[], [], []],
        "encoder_layers_per_block": [0, 1, 1], "decoder_layers_per_block": [0, 1, 1],
    },
    "qwen": {CLASS: "AutoencoderKLQwenImage", **_VIDEO},
    "wan": {CLASS: "AutoencoderKLWan", **_VIDEO, "dim_mult": [1, 2, 2], "temperal_downsample": [True, False]},
    "wan-residual": {
        CLASS: "AutoencoderKLWan", **_VIDEO, "dim_mult": [1, 2, 2], "temperal_downsample": [True, False], "is_residual": True,
        "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 8, "decoder_base_dim": 12,
    },
}  # fmt: skip


def config_of(name: str, **changes: object) -> LibraryDecoder:
    return LibraryDecoder("diffusers", {**CASES[name], **changes})


def filled(network: nn.Module, seed: int = 0) -> nn.Module:
    """Seeded values: a layer keeps the size of its input, no bias is zero, no norm the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in network.named_parameters():
        p.requires_grad_(False)
        noise = torch.randn(p.shape, generator=generator)
        norm = name.endswith("gamma") or ("norm" in name and name.endswith("weight"))
        p.copy_(1.0 + 0.3 * noise if norm else noise * (0.3 if p.dim() == 1 else p[0].numel() ** -0.5))
    return network.eval()


def pair(config: LibraryDecoder, seed: int = 0) -> tuple[Any, DiffusersDecoder]:
    """The library's whole autoencoder, and the reference with the same tensors."""
    whole = filled(build_autoencoder(config), seed)
    reference = DiffusersDecoder(config)
    own = {name: t for name, t in whole.state_dict().items() if name.partition(".")[0] in ("decoder", "post_quant_conv")}
    reference.load_state_dict(own, strict=True)
    return whole, reference.requires_grad_(False)


def save_folder(config: LibraryDecoder, folder: Path, seed: int = 0) -> Any:
    """Write the folder as the library does, and return the autoencoder."""
    whole: Any = filled(build_autoencoder(config), seed)
    whole.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    written = json.loads((folder / "config.json").read_text())
    assert written.items() >= {k: v for k, v in config.config.items() if not isinstance(v, list)}.items()
    return whole


def latents(config: LibraryDecoder, size: tuple[int, int], seed: int = 1) -> Tensor:
    """Standard normal latents (1, C, *size)."""
    channels = int(config.config.get("latent_channels") or config.config["z_dim"])
    return torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(seed))


def relative(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return float((got.double() - expected.double()).norm() / expected.double().norm())
