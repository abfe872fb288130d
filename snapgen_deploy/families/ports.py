"""Ports and calls that students of all families have."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from snapgen_deploy.families.component import LATENT, LATENT_DOC, TIME, VELOCITY, Drawing, Port, Ports
from snapgen_deploy.models.config import StudentConfig, TextStream


def student_ports(config: StudentConfig, drawing: Drawing) -> Ports:
    """Latent, features of the noise level, embeddings and mask of each text stream, and pooled vectors -> velocity."""
    shape = (1, *drawing.latent)
    inputs = [
        Port(LATENT, shape, "float32", LATENT_DOC),
        Port(TIME, (1, config.time_features), "float32", "features of the noise level, from the bundle's schedule"),
    ]
    for s in config.text_streams:
        inputs.append(Port(s.name, (1, s.length, s.dim), "float32", f"embeddings of the text stream '{s.name}'"))
        inputs.append(Port(f"{s.name}_mask", (1, s.length), "float32", "1 where there is a token, 0 at padding"))
    inputs += [
        Port(s.pooled_name, (1, s.pooled), "float32", f"pooled vector of the text stream '{s.name}'")
        for s in config.text_streams
        if s.pooled
    ]
    velocity = Port(VELOCITY, shape, "float32", "noise minus picture; next latent = latent + (next - sigma) * velocity")
    return Ports(tuple(inputs), (velocity,), f"one denoising step, sub-network '{drawing.width}'")


def stepped(streams: tuple[TextStream, ...], network: nn.Module, x: Mapping[str, Tensor]) -> Tensor:
    """Run a student on its inputs."""
    text, mask = {s.name: x[s.name] for s in streams}, {s.name: x[f"{s.name}_mask"] for s in streams}
    pooled = {s.name: x[s.pooled_name] for s in streams if s.pooled}
    velocity: Tensor = network(x[LATENT], x[TIME], text, mask, *([pooled] if pooled else []))
    return velocity
