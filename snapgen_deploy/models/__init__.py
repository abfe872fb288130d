"""The reference networks that everything exported is checked against."""

from snapgen_deploy.models.config import (
    PRESETS,
    DecoderConfig,
    DiTConfig,
    ModelConfig,
    TextEncoderConfig,
    TextStream,
)
from snapgen_deploy.models.decoder import TinyDecoder
from snapgen_deploy.models.dit import DiT, ElasticDiT, elastic_name, is_per_width, time_features
from snapgen_deploy.models.schedule import euler, initial_noise, sigmas
from snapgen_deploy.models.text_encoder import TextEncoder

__all__ = [
    "PRESETS", "DecoderConfig", "DiT", "DiTConfig", "ElasticDiT", "ModelConfig", "TextEncoder", "TextEncoderConfig",
    "TextStream", "TinyDecoder", "elastic_name", "euler", "initial_noise", "is_per_width", "sigmas", "time_features",
]  # fmt: skip
