"""Draws pictures with any components that have the bundle's ports: the reference networks, or exported files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Arrays, Role, Runner
from snapgen_deploy.families.component import LATENT, MASK, PICTURE, TIME, TOKENS, VELOCITY, Components, TextInput
from snapgen_deploy.models import Schedule
from snapgen_deploy.models.noise import DEFAULT_NOISE, drawn_noise
from snapgen_deploy.models.tokenizer import WordTokenizer
from snapgen_deploy.system.progress import OnProgress


@dataclass
class StudentTrace:
    """Inputs and outputs of the student, one array per step: latents (n, C, h, w), velocities with the rows of a call."""

    latents: list[np.ndarray] = field(default_factory=list)
    velocities: list[np.ndarray] = field(default_factory=list)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Latents and velocities by picture: both (n, steps, C, h, w); with guidance, velocities (n, steps, 2, C, h, w)."""
        latents, velocities = np.stack(self.latents, axis=1), np.stack(self.velocities, axis=1)
        if len(velocities) == len(latents):
            return latents, velocities
        by_row = velocities.reshape(-1, *latents.shape)  # (2, n, steps, C, h, w)
        return latents, np.ascontiguousarray(by_row.transpose(1, 2, 0, 3, 4, 5))


@dataclass(frozen=True)
class Condition:
    """What pictures are of, before it is encoded: inputs of the text encoders, and text that no encoder makes; n rows each."""

    tokens: Mapping[Role, Arrays]
    text: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Pipeline:
    """Text encoders, student and decoder as functions of named arrays; encoders and decoder may be absent."""

    components: Components
    runners: Mapping[Role, Runner]
    schedule: Schedule
    latent: tuple[int, int, int]  # channels, height, width
    generator: str = DEFAULT_NOISE  # of the noise, in `models.noise.GENERATORS`
    batch: int = 1  # pictures that a call of student and decoder draws
    guidance: float | None = None  # scale in place of the configuration's, for a student that is called with guidance

    def encode(self, inputs: Mapping[Role, Arrays]) -> Arrays:
        """Run the text encoders.

        Args:
            inputs: For each text encoder, its tokens (n, L) int32 and mask (n, L) float32; each row is a call.

        Returns:
            The student's text inputs: embeddings, mask and perhaps a pooled vector of each encoded stream.

        Raises:
            BadInput: if the pipeline lacks one of the text encoders.
        """
        text: Arrays = {}
        for role, given in inputs.items():
            if role not in self.runners:
                raise BadInput("this bundle has no text encoder: a prompt cannot be drawn from it")
            spec, run = self.components[role], self.runners[role]
            rows = [run({name: value[i : i + 1] for name, value in given.items()}) for i in range(len(given[MASK]))]
            found = stacked_rows(rows)
            text |= {name: found[name] for name in spec.outputs}
            text[f"{spec.output}_mask"] = given[MASK][:, spec.reads.dropped :]
        return text

    def condition(self, prompt: Condition, negative: Condition | None = None) -> Arrays:
        """The student's text inputs: rows of the prompts, then with guidance those of the negative prompts."""
        return stacked_rows([c.text | self.encode(c.tokens) for c in (prompt, negative) if c is not None])

    def denoise(self, noise: np.ndarray, text: Arrays, trace: StudentTrace | None = None) -> np.ndarray:
        """Turn noise into clean latents (n, C, h, w), with one call of the student per step.

        `noise` is (n, C, h, w), or (n, 1 + fresh, C, h, w) where steps of the schedule draw noise.
        """
        spec = self.components.denoiser
        student, scale = self.runners[spec.name], spec.guidance if self.guidance is None else self.guidance

        def velocity(latent: torch.Tensor, step: int) -> torch.Tensor:
            inputs = step_inputs(latent.numpy(), self.schedule.features(step), text, spec.rows)
            out = student(inputs)[VELOCITY]
            if trace is not None:
                trace.latents.append(latent.numpy())
                trace.velocities.append(out)
            return torch.from_numpy(out if spec.rows == 1 else guided(out, scale))

        return self.schedule.sampled(velocity, torch.from_numpy(noise)).numpy()

    @property
    def decodes(self) -> bool:
        """Whether the pipeline has a decoder, and so can turn latents into pictures."""
        return self.components.decoder is not None and self.components.decoder.name in self.runners

    def decode(self, latent: np.ndarray) -> np.ndarray:
        """Decode a latent (1, C, h, w) to a picture (1, 3, H, W) in -1 ... 1."""
        assert self.components.decoder is not None
        return self.runners[self.components.decoder.name]({LATENT: latent})[PICTURE]

    def draw(self, text: Arrays, *seeds: int) -> list[np.ndarray]:
        """Draw pictures (H, W, 3), uint8, in one call. `text` holds all of the student's text inputs.

        Raises:
            BadInput: if the decoder returned NaN or infinity.
        """
        fresh = self.schedule.fresh
        noise = np.concatenate([noise_for(seed, self.latent, self.generator, fresh) for seed in seeds])
        return [to_bytes(picture[None]) for picture in self.decode(self.denoise(noise, text))]


def in_calls(pictures: int, batch: int) -> list[list[int]]:
    """The numbers of all pictures in calls of `batch` rows; the last call is filled up with pictures from the start.

    >>> in_calls(5, 2)
    [[0, 1], [2, 3], [4, 0]]
    """
    return [[i % pictures for i in range(first, first + batch)] for first in range(0, pictures, batch)]


def stacked_rows(parts: Sequence[Arrays]) -> Arrays:
    """Arrays of the same names, one after the other along their rows."""
    return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def step_inputs(latent: np.ndarray, features: np.ndarray, text: Arrays, rows: int) -> Arrays:
    """The student's inputs at one step, for latents (n, C, h, w), features (1, F) and text that has all n * `rows` rows."""
    return {
        LATENT: latent if rows == 1 else np.concatenate([latent] * rows),
        TIME: np.repeat(features, rows * len(latent), axis=0),
        **text,
    }


def guided(velocity: np.ndarray, scale: float) -> np.ndarray:
    """Classifier-free guidance: velocities (2n, C, h, w) of prompts and negative prompts -> (n, C, h, w).

    negative + scale * (prompt - negative), in single precision.

    >>> guided(np.array([[3.0], [1.0]], np.float32), 2.0)
    array([[5.]], dtype=float32)
    """
    prompt, negative = np.split(velocity, 2)
    combined: np.ndarray = negative + np.float32(scale) * (prompt - negative)
    return combined


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


def noise_for(seed: int, latent: tuple[int, int, int], generator: str = DEFAULT_NOISE, fresh: int = 0) -> np.ndarray:
    """The starting noise (1, C, h, w) for a seed; the same for every target.

    With `fresh`, what the steps draw after it as well: (1, 1 + fresh, C, h, w).
    """
    drawn = drawn_noise(generator, seed, 1 + fresh, latent)
    return drawn[None] if fresh else drawn


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
