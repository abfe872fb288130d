"""The components of a model, and their named inputs and outputs."""

from __future__ import annotations

from typing import Protocol

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import ROLES, Port, Role
from snapgen_deploy.models import ModelConfig


def roles_of(config: ModelConfig) -> tuple[Role, ...]:
    """The components that a checkpoint of this configuration holds, in the order in which a picture uses them."""
    there = {"student": True, "decoder": config.decoder is not None, "text_encoder": config.text_encoder is not None}
    return tuple(role for role in ROLES if there[role])


class Drawing(Protocol):
    """What ports depend on beside the configuration; a plan and a bundle have it."""

    @property
    def width(self) -> str:
        """The sub-network's name."""

    @property
    def resolution(self) -> tuple[int, int]:
        """Picture height and width."""

    @property
    def latent(self) -> tuple[int, int, int]:
        """Channels, height and width."""


def ports_of(config: ModelConfig, plan: Drawing, role: Role) -> tuple[tuple[Port, ...], tuple[Port, ...], str]:
    """Inputs, outputs and a one-line description of a component."""
    latent_shape = (1, *plan.latent)
    latent = Port("latent", latent_shape, "float32", "latent, normalised per channel; standard normal noise at the first step")
    if role == "student":
        features = Port(
            "time_features",
            (1, config.student.time_features),
            "float32",
            "features of the noise level, from the bundle's schedule",
        )
        text = []
        for s in config.student.text_streams:
            text.append(Port(s.name, (1, s.length, s.dim), "float32", f"embeddings of the text stream '{s.name}'"))
            text.append(Port(f"{s.name}_mask", (1, s.length), "float32", "1 where there is a token, 0 at padding"))
        velocity = Port(
            "velocity", latent_shape, "float32", "noise minus picture; next latent = latent + (next - sigma) * velocity"
        )
        return (latent, features, *text), (velocity,), f"one denoising step, sub-network '{plan.width}'"
    if role == "decoder":
        picture = Port("picture", (1, 3, *plan.resolution), "float32", "red, green, blue in -1 ... 1 (clamp before use)")
        return (latent,), (picture,), "latent to picture"
    encoder = config.text_encoder
    if encoder is None:
        raise BadInput("this checkpoint has no text encoder")
    tokens = Port("tokens", (1, encoder.length), "int32", "token ids from tokenizer.json, padded")
    mask = Port("mask", (1, encoder.length), "float32", "1 where there is a token, 0 at padding")
    out = Port(encoder.stream, (1, encoder.length, encoder.width), "float32", "token embeddings")
    return (tokens, mask), (out,), "prompt tokens to embeddings"
