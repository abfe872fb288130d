"""Draws pictures with any components that follow the bundle's ports: the reference, or files on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Arrays, Role, Runner
from snapgen_deploy.families.component import LATENT, MASK, PICTURE, TIME, TOKENS, VELOCITY, Components
from snapgen_deploy.models import Schedule, euler_by_step, initial_noise
from snapgen_deploy.models.tokenizer import WordTokenizer
from snapgen_deploy.system.progress import OnProgress


@dataclass
class StudentTrace:
    """What went in and came out of the student, step by step; arrays of shape (1, C, h, w)."""

    latents: list[np.ndarray] = field(default_factory=list)
    velocities: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Pipeline:
    """Text encoders, student and decoder as functions of named arrays; encoders and decoder may be absent."""

    components: Components
    runners: Mapping[Role, Runner]
    schedule: Schedule
    latent: tuple[int, int, int]  # channels, height, width

    def encode(self, inputs: Mapping[Role, Arrays]) -> Arrays:
        """Per text encoder its tokens (1, L) int32 and mask (1, L) float32 -> the student's text inputs."""
        text: Arrays = {}
        for role, given in inputs.items():
            if role not in self.runners:
                raise BadInput("this bundle has no text encoder: a prompt cannot be drawn from it")
            for stream, embeddings in self.runners[role](given).items():
                text |= {stream: embeddings, f"{stream}_mask": given[MASK]}
        return text

    def denoise(self, noise: np.ndarray, text: Arrays, trace: StudentTrace | None = None) -> np.ndarray:
        """Noise (1, C, h, w) -> clean latent (1, C, h, w); one call of the student per step."""
        student = self.runners[self.components.denoiser.name]

        def velocity(latent: torch.Tensor, step: int) -> torch.Tensor:
            features = self.schedule.features(step)
            out = student({LATENT: latent.numpy(), TIME: features, **text})[VELOCITY]
            if trace is not None:
                trace.latents.append(latent.numpy())
                trace.velocities.append(out)
            return torch.from_numpy(out)

        return euler_by_step(velocity, torch.from_numpy(noise), self.schedule.sigmas).numpy()

    @property
    def decodes(self) -> bool:
        """Whether there is a decoder to make pictures of latents."""
        return self.components.decoder is not None and self.components.decoder.name in self.runners

    def decode(self, latent: np.ndarray) -> np.ndarray:
        """Latent (1, C, h, w) -> picture (1, 3, H, W) in -1 ... 1."""
        assert self.components.decoder is not None
        return self.runners[self.components.decoder.name]({LATENT: latent})[PICTURE]

    def draw(self, text: Arrays, seed: int) -> np.ndarray:
        """A picture (H, W, 3) of unsigned bytes; `text` has all of the student's text inputs."""
        return to_bytes(self.decode(self.denoise(noise_for(seed, self.latent), text)))


def tokenize(tokenizer_json: str, prompt: str, length: int) -> Arrays:
    """A prompt as a text encoder's inputs: tokens (1, L) int32, mask (1, L) float32."""
    tokens, mask = WordTokenizer(tokenizer_json).encode(prompt, length)
    return {TOKENS: np.array([tokens], dtype=np.int32), MASK: np.array([mask], dtype=np.float32)}


def tokenize_all(components: Components, tokenizers: Mapping[Role, str], prompt: str) -> dict[Role, Arrays]:
    """A prompt as the inputs of every text encoder, each by its own tokenizer."""
    return {spec.name: tokenize(tokenizers[spec.name], prompt, spec.reads.length) for spec in components.encoders}


def counted(runner: Runner, total: int, on_progress: OnProgress) -> Runner:
    """The same runner; `on_progress` gets after each call how many of `total` were made."""
    done = 0

    def run(inputs: Mapping[str, np.ndarray]) -> Arrays:
        nonlocal done
        found = runner(inputs)
        done += 1
        on_progress(done, total)
        return found

    return run


def noise_for(seed: int, latent: tuple[int, int, int]) -> np.ndarray:
    """The starting noise (1, C, h, w) of a seed, the same for every target."""
    return initial_noise(seed, (1, *latent)).numpy()


def to_bytes(picture: np.ndarray) -> np.ndarray:
    """(1, 3, H, W) in -1 ... 1 -> (H, W, 3) unsigned bytes; not-a-number is refused."""
    if not np.isfinite(picture).all():
        raise BadInput("the decoder returned values that are not finite: this model does not draw on this runtime")
    scaled = (np.clip(picture[0], -1.0, 1.0) + 1.0) * 127.5
    return np.asarray(np.rint(scaled), dtype=np.uint8).transpose(1, 2, 0)
