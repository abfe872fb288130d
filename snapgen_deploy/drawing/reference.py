"""The reference's own pictures, kept as test vectors: inputs and expected outputs of every component."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.checkpoint.networks import load_decoder, load_student, load_text_encoder
from snapgen_deploy.drawing.pipeline import Pipeline, Schedule, Trace, counted, noise_for, tokenize
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import ROLES, Arrays, Role, Runner
from snapgen_deploy.models import DiT, ModelConfig, TextEncoderConfig, sigmas
from snapgen_deploy.plan.plan import ExportPlan
from snapgen_deploy.system.progress import Done, untold


@dataclass(frozen=True)
class ReferenceVectors:
    """Stacked over P prompts: what the reference was given and what it returned."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    arrays: Arrays

    def text(self, index: int, config: ModelConfig) -> Arrays:
        """The student's text inputs of one prompt."""
        names = [n for s in config.student.text_streams for n in (s.name, f"{s.name}_mask")]
        return {n: self.arrays[f"student.{n}"][index : index + 1] for n in names}


def schedule_of(config: ModelConfig) -> Schedule:
    """The few-step schedule of a checkpoint."""
    return Schedule(sigmas(config.steps, config.shift), config.shift, config.student.time_features)


def reference_runners(checkpoint: Checkpoint, width: str, roles: Collection[Role] = ROLES) -> dict[Role, Runner]:
    """The fp32 reference networks of `roles` that the checkpoint has, as functions of named arrays."""
    config = checkpoint.config
    runners: dict[Role, Runner] = {}
    if "student" in roles:
        student = load_student(checkpoint, width)
        streams = [s.name for s in config.student.text_streams]

        def run_student(x: Mapping[str, np.ndarray]) -> Arrays:
            t = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in x.items()}
            text = {s: t[s] for s in streams}
            mask = {s: t[f"{s}_mask"] for s in streams}
            with torch.inference_mode():
                return {"velocity": student(t["latent"], t["time_features"], text, mask).numpy()}

        runners["student"] = run_student
    if config.decoder is not None and "decoder" in roles:
        decoder = load_decoder(checkpoint)

        def run_decoder(x: Mapping[str, np.ndarray]) -> Arrays:
            with torch.inference_mode():
                return {"picture": decoder(torch.from_numpy(x["latent"])).numpy()}

        runners["decoder"] = run_decoder
    if config.text_encoder is not None and "text_encoder" in roles:
        encoder, stream = load_text_encoder(checkpoint), config.text_encoder.stream

        def run_encoder(x: Mapping[str, np.ndarray]) -> Arrays:
            with torch.inference_mode():
                return {stream: encoder(torch.from_numpy(x["tokens"]), torch.from_numpy(x["mask"])).numpy()}

        runners["text_encoder"] = run_encoder
    return runners


def make_vectors(
    checkpoint: Checkpoint,
    plan: ExportPlan,
    prompts: Sequence[str],
    seeds: Sequence[int] | None = None,
    tell: Done = untold,
) -> ReferenceVectors:
    """Draw each prompt with the reference and keep every component's inputs and outputs.

    Prompt i has the i-th of `seeds`, or seed i. Text streams that the checkpoint has no encoder for get seeded standard normal
    embeddings; an encoder without a tokenizer gets seeded random tokens. `tell` hears how many calls of the student are done.
    """
    config = checkpoint.config
    runners, schedule = reference_runners(checkpoint, plan.width), schedule_of(config)
    runners["student"] = counted(runners["student"], len(prompts) * (len(schedule.sigmas) - 1), tell)
    pipeline = Pipeline(runners, schedule, plan.latent)
    rows: dict[str, list[np.ndarray]] = {}
    seeds = tuple(range(len(prompts)) if seeds is None else seeds)
    for seed, prompt in zip(seeds, prompts, strict=True):
        row: Arrays = {}
        text = random_text(config, seed)
        if config.text_encoder is not None:
            row["tokens"], row["mask"] = prompt_tokens(checkpoint, config.text_encoder, prompt, seed)
            text.update(pipeline.encode(row["tokens"], row["mask"]))
        row.update({f"student.{name}": value for name, value in text.items()})
        trace = Trace()
        row["noise"] = noise_for(seed, plan.latent)
        row["latent"] = pipeline.denoise(row["noise"], text, trace)
        row["student.latents"] = np.stack(trace.latents, axis=1)  # (1, steps, C, h, w)
        row["student.velocities"] = np.stack(trace.velocities, axis=1)  # (1, steps, C, h, w)
        if config.decoder is not None:
            row["picture"] = pipeline.decode(row["latent"])
        for name, value in row.items():
            if not np.isfinite(value).all():
                raise BadInput(
                    f"{checkpoint.path}: the reference itself gives values of {name} that are not finite, for {prompt[:80]!r} "
                    f"with seed {seed}; give a checkpoint that draws"
                )
            rows.setdefault(name, []).append(value)
    arrays = {name: np.concatenate(values) for name, values in sorted(rows.items())}
    return ReferenceVectors(tuple(prompts), seeds, arrays)


def with_tuned(vectors: ReferenceVectors, student: DiT, schedule: Schedule) -> ReferenceVectors:
    """The vectors with `tuned.velocities` (P, steps, C, h, w): what a tuned student answers to the reference's own inputs."""
    latents, names = vectors.arrays["student.latents"], [s.name for s in student.config.text_streams]
    rows = []
    for i in range(len(vectors.prompts)):
        text, mask = (
            {n: torch.from_numpy(vectors.arrays[f"student.{n}{end}"][i : i + 1]) for n in names} for end in ("", "_mask")
        )
        for step in range(latents.shape[1]):
            x, features = torch.from_numpy(latents[i : i + 1, step]), torch.from_numpy(schedule.features(step))
            with torch.inference_mode():
                rows.append(student(x, features, text, mask).numpy())
    velocities = np.concatenate(rows).reshape(latents.shape)
    return replace(vectors, arrays=dict(sorted({**vectors.arrays, "tuned.velocities": velocities}.items())))


def prompt_tokens(checkpoint: Checkpoint, encoder: TextEncoderConfig, prompt: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Token numbers and mask (1, L); seeded random ones where the checkpoint has no tokenizer to read a prompt with."""
    if checkpoint.tokenizer:
        return tokenize(checkpoint.tokenizer, prompt, encoder.length)
    drawn = np.random.default_rng(seed).integers(0, encoder.vocab, (1, encoder.length), dtype=np.int32)
    return drawn, np.ones((1, encoder.length), np.float32)


def random_text(config: ModelConfig, seed: int) -> Arrays:
    """Seeded standard normal embeddings (1, L, dim) and masks of ones (1, L) of every text stream."""
    rng = np.random.default_rng(seed)
    out: Arrays = {}
    for s in config.student.text_streams:
        out[s.name] = rng.standard_normal((1, s.length, s.dim), dtype=np.float32)
        out[f"{s.name}_mask"] = np.ones((1, s.length), dtype=np.float32)
    return out
