"""Ports and calls that students of all families have."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from snapgen_deploy.families.component import LATENT, LATENT_DOC, TIME, VELOCITY, Drawing, Port, Ports
from snapgen_deploy.models.config import StudentConfig


def student_ports(config: StudentConfig, drawing: Drawing) -> Ports:
    """Latent, features of the noise level, and embeddings and mask of each text stream -> velocity."""
    shape = (1, *drawing.latent)
    inputs = [
        Port(LATENT, shape, "float32", LATENT_DOC),
        Port(TIME, (1, config.time_features), "float32", "features of the noise level, from the bundle's schedule"),
    ]
    for s in config.text_streams:
        inputs.append(Port(s.name, (1, s.length, s.dim), "float32", f"embeddings of the text stream '{s.name}'"))
        inputs.append(Port(f"{s.name}_mask", (1, s.length), "float32", "1 where there is a token, 0 at padding"))
    velocity = Port(VELOCITY, shape, "float32", "noise minus picture; next latent = latent + (next - sigma) * velocity")
    return Ports(tuple(inputs), (velocity,), f"one denoising step, sub-network '{drawing.width}'")


def stepped(streams: tuple[str, ...], network: nn.Module, x: Mapping[str, Tensor]) -> Tensor:
    """Run a student on its inputs."""
    text, mask = {s: x[s] for s in streams}, {s: x[f"{s}_mask"] for s in streams}
    velocity: Tensor = network(x[LATENT], x[TIME], text, mask)
    return velocity
