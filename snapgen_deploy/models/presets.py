"""Configurations by name: those that `init` writes, and the embedded checkpoint's."""

from __future__ import annotations

from dataclasses import replace

from snapgen_deploy.models.config import DecoderConfig, LibraryTextEncoder, ModelConfig, TextEncoderConfig, TextStream
from snapgen_deploy.models.dit_config import DiTConfig
from snapgen_deploy.models.unet_config import UNetConfig

UNET = "unet"  # the family's name in a configuration


def snapgenpp() -> ModelConfig:
    """Full scale: 0.3B / 0.4B / 1.6B students for 1024 x 1024 pictures."""
    return ModelConfig(DiTConfig(), DecoderConfig(), TextEncoderConfig(), name="snapgenpp", trained=False)


def _clip(width: int, layers: int, heads: int, activation: str) -> dict[str, object]:
    """A CLIP text encoder as transformers configures it."""
    return {
        "model_type": "clip_text_model", "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "hidden_act": activation, "max_position_embeddings": 77, "vocab_size": 49408,
        "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1,
    }  # fmt: skip


def snapgen() -> ModelConfig:
    """SnapGen's U-Net for 1024 x 1024 pictures, with CLIP-L and CLIP-bigG; its language model's embeddings are an input."""
    return ModelConfig(
        UNetConfig(),
        DecoderConfig(),
        LibraryTextEncoder("transformers", _clip(768, 12, 12, "quick_gelu"), 77, "clip_l", layer=-2),
        name="snapgen",
        trained=False,
        family=UNET,
        other_text_encoders=(LibraryTextEncoder("transformers", _clip(1280, 32, 20, "gelu"), 77, "clip_g", layer=-2),),
    )


SHAPES_PROMPTS = (
    "a red ring left of a blue square on a gray background",
    "a large yellow circle at the top and a small purple triangle at the bottom right on a black background",
    "a pink cross at the left, a green diamond at the center and an orange square at the right on a white background",
    "a small cyan diamond above a large orange circle on a navy background",
)


def shapes() -> ModelConfig:
    """The embedded checkpoint: 128 x 128 pictures of coloured shapes; small enough to train on a CPU."""
    student = DiTConfig(
        latent_channels=4,
        hidden=256,
        head_dim=16,
        depths=(2, 6, 2),
        blocks=8,
        text_streams=(TextStream("text", 128, 40),),
        text_width=128,
        cross_dim=128,
    )
    decoder = DecoderConfig(latent_channels=4, channels=(96, 64, 32, 16), blocks=(2, 2, 1, 0))
    text = TextEncoderConfig(vocab=64, length=40, width=128, layers=3, heads=4)
    return ModelConfig(student, decoder, text, name="shapes", resolution=(128, 128), prompts=SHAPES_PROMPTS)


def shapes_unet() -> ModelConfig:
    """A U-Net for the embedded checkpoint's pictures, text encoder and decoder."""
    student = UNetConfig(
        latent_channels=4,
        channels=(48, 192),
        blocks=(0, 2),
        residuals=1,
        groups=16,
        head_dim=32,
        ffn_gated=False,
        text_streams=(TextStream("text", 128, 40),),
        text_width=128,
        time_width=192,
    )
    return replace(shapes(), student=student, name="shapes-unet", family=UNET)


PRESETS = {"snapgenpp": snapgenpp, "shapes": shapes, "snapgen": snapgen, "shapes-unet": shapes_unet}
