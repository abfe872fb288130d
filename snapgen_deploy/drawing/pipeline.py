"""Draws pictures with any three components that follow the bundle's ports: the reference, or files on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Arrays, Role, Runner
from snapgen_deploy.models import euler, initial_noise, time_features
from snapgen_deploy.models.tokenizer import WordTokenizer
from snapgen_deploy.system.progress import Done


@dataclass(frozen=True)
class Schedule:
    """Noise levels of the sampler, ending in 0, and the number of time features that the student takes."""

    sigmas: tuple[float, ...]
    shift: float
    time_features: int
    sampler: str = "euler"

    def features(self, step: int) -> np.ndarray:
        """The student's `time_features` input (1, F) at a step."""
        return time_features(torch.tensor([self.sigmas[step]]), self.time_features).numpy()


@dataclass
class Trace:
    """What went in and came out of the student, step by step; arrays of shape (1, C, h, w)."""

    latents: list[np.ndarray] = field(default_factory=list)
    velocities: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Pipeline:
    """Text encoder, student and decoder as functions of named arrays; encoder and decoder may be absent."""

    runners: Mapping[Role, Runner]
    schedule: Schedule
    latent: tuple[int, int, int]  # channels, height, width

    def encode(self, tokens: np.ndarray, mask: np.ndarray) -> Arrays:
        """Prompt tokens (1, L) int32 and mask (1, L) float32 -> the student's text inputs."""
        if "text_encoder" not in self.runners:
            raise BadInput("this bundle has no text encoder: a prompt cannot be drawn from it")
        out = self.runners["text_encoder"]({"tokens": tokens, "mask": mask})
        return {name: value for stream, text in out.items() for name, value in ((stream, text), (f"{stream}_mask", mask))}

    def denoise(self, noise: np.ndarray, text: Arrays, trace: Trace | None = None) -> np.ndarray:
        """Noise (1, C, h, w) -> clean latent (1, C, h, w); one call of the student per step."""

        def velocity(latent: torch.Tensor, sigma: float) -> torch.Tensor:
            features = self.schedule.features(self.schedule.sigmas.index(sigma))
            out = self.runners["student"]({"latent": latent.numpy(), "time_features": features, **text})["velocity"]
            if trace is not None:
                trace.latents.append(latent.numpy())
                trace.velocities.append(out)
            return torch.from_numpy(out)

        return euler(velocity, torch.from_numpy(noise), self.schedule.sigmas).numpy()

    def decode(self, latent: np.ndarray) -> np.ndarray:
        """Latent (1, C, h, w) -> picture (1, 3, H, W) in -1 ... 1."""
        return self.runners["decoder"]({"latent": latent})["picture"]

    def draw(self, text: Arrays, seed: int) -> np.ndarray:
        """A picture (H, W, 3) of unsigned bytes; `text` has all of the student's text inputs."""
        return to_bytes(self.decode(self.denoise(noise_for(seed, self.latent), text)))


def tokenize(tokenizer_json: str, prompt: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """A prompt as the text encoder's inputs: tokens (1, L) int32, mask (1, L) float32."""
    tokens, mask = WordTokenizer(tokenizer_json).encode(prompt, length)
    return np.array([tokens], dtype=np.int32), np.array([mask], dtype=np.float32)


def counted(runner: Runner, total: int, tell: Done) -> Runner:
    """The same runner; `tell` hears after each call how many of `total` were made."""
    done = 0

    def run(inputs: Mapping[str, np.ndarray]) -> Arrays:
        nonlocal done
        found = runner(inputs)
        done += 1
        tell(done, total)
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
