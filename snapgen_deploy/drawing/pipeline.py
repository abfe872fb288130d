"""Draws pictures with any components that have the bundle's ports: the reference networks, or exported files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Arrays, Role, Runner
from snapgen_deploy.families.component import LATENT, MASK, PICTURE, TIME, TOKENS, VELOCITY, Components, TextInput
from snapgen_deploy.models import Schedule, euler_by_step
from snapgen_deploy.models.noise import GENERATORS, PHILOX
from snapgen_deploy.models.tokenizer import WordTokenizer
from snapgen_deploy.system.progress import OnProgress


@dataclass
class StudentTrace:
    """Inputs and outputs of the student, one array (1, C, h, w) per step."""

    latents: list[np.ndarray] = field(default_factory=list)
    velocities: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Pipeline:
    """Text encoders, student and decoder as functions of named arrays; encoders and decoder may be absent."""

    components: Components
    runners: Mapping[Role, Runner]
    schedule: Schedule
    latent: tuple[int, int, int]  # channels, height, width
    generator: str = PHILOX  # of the noise, in `models.noise.GENERATORS`

    def encode(self, inputs: Mapping[Role, Arrays]) -> Arrays:
        """Run the text encoders.

        Args:
            inputs: For each text encoder, its tokens (1, L) int32 and mask (1, L) float32.

        Returns:
            The student's text inputs: embeddings and mask of each encoded stream.

        Raises:
            BadInput: if the pipeline lacks one of the text encoders.
        """
        text: Arrays = {}
        for role, given in inputs.items():
            if role not in self.runners:
                raise BadInput("this bundle has no text encoder: a prompt cannot be drawn from it")
            spec, found = self.components[role], self.runners[role](given)
            text |= {spec.output: found[spec.output], f"{spec.output}_mask": given[MASK][:, spec.reads.dropped :]}
        return text

    def denoise(self, noise: np.ndarray, text: Arrays, trace: StudentTrace | None = None) -> np.ndarray:
        """Turn noise (1, C, h, w) into a clean latent (1, C, h, w), with one call of the student per step."""
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
        """Whether the pipeline has a decoder, and so can turn latents into pictures."""
        return self.components.decoder is not None and self.components.decoder.name in self.runners

    def decode(self, latent: np.ndarray) -> np.ndarray:
        """Decode a latent (1, C, h, w) to a picture (1, 3, H, W) in -1 ... 1."""
        assert self.components.decoder is not None
        return self.runners[self.components.decoder.name]({LATENT: latent})[PICTURE]

    def draw(self, text: Arrays, seed: int) -> np.ndarray:
        """Draw a picture (H, W, 3), uint8. `text` holds all of the student's text inputs.

        Raises:
            BadInput: if the decoder returned NaN or infinity.
        """
        return to_bytes(self.decode(self.denoise(noise_for(seed, self.latent, self.generator), text)))


def tokenize(tokenizer_json: str, prompt: str, reads: TextInput) -> Arrays:
    """Turn a prompt into a text encoder's inputs: tokens (1, L) int32, mask (1, L) float32.

    Raises:
        BadInput: if the tokenizer does not know a word, or the prompt has more tokens than the text encoder takes.
    """
    tokens, mask = WordTokenizer(tokenizer_json, reads.reading).encode(prompt, reads.length)
    return {TOKENS: np.array([tokens], dtype=np.int32), MASK: np.array([mask], dtype=np.float32)}


def tokenize_all(components: Components, tokenizers: Mapping[Role, str], prompt: str) -> dict[Role, Arrays]:
    """Turn a prompt into the inputs of every text encoder, each with its own tokenizer."""
    return {spec.name: tokenize(tokenizers[spec.name], prompt, spec.reads) for spec in components.encoders}


def counted(runner: Runner, total: int, on_progress: OnProgress) -> Runner:
    """Wrap a runner so that `on_progress(calls so far, total)` is called after each of its calls."""
    done = 0

    def run(inputs: Mapping[str, np.ndarray]) -> Arrays:
        nonlocal done
        found = runner(inputs)
        done += 1
        on_progress(done, total)
        return found

    return run


def noise_for(seed: int, latent: tuple[int, int, int], generator: str = PHILOX) -> np.ndarray:
    """The starting noise (1, C, h, w) for a seed; the same for every target."""
    return GENERATORS[generator](seed, (1, *latent))


def to_bytes(picture: np.ndarray) -> np.ndarray:
    """Convert a picture (1, 3, H, W) in -1 ... 1 to (H, W, 3), uint8. Values outside the range are clipped.

    >>> to_bytes(np.ones((1, 3, 8, 8), np.float32)).max()
    np.uint8(255)

    Raises:
        BadInput: if a value is NaN or infinite.
    """
    if not np.isfinite(picture).all():
        raise BadInput("the decoder returned values that are not finite: this model does not draw on this runtime")
    scaled = (np.clip(picture[0], -1.0, 1.0) + 1.0) * 127.5
    return np.asarray(np.rint(scaled), dtype=np.uint8).transpose(1, 2, 0)
