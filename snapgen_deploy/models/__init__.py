"""The reference networks: every exported file is checked against them."""

from snapgen_deploy.models.config import DecoderConfig, ModelConfig, StudentConfig, TextEncoderConfig, TextStream
from snapgen_deploy.models.decoder import TinyDecoder
from snapgen_deploy.models.dit import DiT, ElasticDiT, elastic_name, is_per_width
from snapgen_deploy.models.dit_config import DiTConfig
from snapgen_deploy.models.presets import PRESETS
from snapgen_deploy.models.schedule import Schedule, euler, euler_by_step, initial_noise, sigmas, time_features
from snapgen_deploy.models.student import Student
from snapgen_deploy.models.text_encoder import TextEncoder

__all__ = [
    "PRESETS", "DecoderConfig", "DiT", "DiTConfig", "ElasticDiT", "ModelConfig", "Schedule", "Student", "StudentConfig",
    "TextEncoder", "TextEncoderConfig", "TextStream", "TinyDecoder", "elastic_name", "euler", "euler_by_step", "initial_noise",
    "is_per_width", "sigmas", "time_features",
]  # fmt: skip
