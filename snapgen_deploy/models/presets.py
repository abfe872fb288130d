"""Configurations by name: those that `init` writes, and the embedded checkpoint's."""

from __future__ import annotations

from snapgen_deploy.models.config import DecoderConfig, ModelConfig, TextEncoderConfig, TextStream
from snapgen_deploy.models.dit_config import DiTConfig


def snapgenpp() -> ModelConfig:
    """Full scale: 0.3B / 0.4B / 1.6B students for 1024 x 1024 pictures."""
    return ModelConfig(DiTConfig(), DecoderConfig(), TextEncoderConfig(), name="snapgenpp", trained=False)


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


PRESETS = {"snapgenpp": snapgenpp, "shapes": shapes}
