"""Pictures drawn by the reference, kept as test vectors: inputs and expected outputs of every component."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.checkpoint.networks import load_component
from snapgen_deploy.drawing.pipeline import Pipeline, StudentTrace, counted, noise_for, tokenize
from snapgen_deploy.drawing.ports import absent_text, recorded_tokens, token_arrays
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Arrays, Role, Runner
from snapgen_deploy.families.component import LATENT, MASK, PARTS, PICTURE, TIME, TOKENS, ComponentSpec, Part
from snapgen_deploy.families.names import STUDENT
from snapgen_deploy.families.registry import components_of, family_of
from snapgen_deploy.models import ModelConfig, Schedule, Student
from snapgen_deploy.plan.plan import ExportPlan
from snapgen_deploy.system.progress import OnProgress, ignore_progress

# Names of arrays in test vectors, besides those of the ports. The student's text inputs are named `student.<port>`.
LATENTS, VELOCITIES, TUNED = f"{STUDENT}.latents", f"{STUDENT}.velocities", "tuned.velocities"


@dataclass(frozen=True)
class ReferenceVectors:
    """Inputs and outputs of the reference, each array stacked over P prompts."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    arrays: Arrays

    def text(self, index: int, config: ModelConfig) -> Arrays:
        """The student's text inputs for one prompt."""
        names = [n for s in config.student.text_streams for n in (s.name, f"{s.name}_mask")]
        return {n: self.arrays[f"{STUDENT}.{n}"][index : index + 1] for n in names}

    def cases(self, spec: ComponentSpec, config: ModelConfig, index: int) -> Iterator[tuple[Arrays, np.ndarray]]:
        """Inputs and output of a reference component for one prompt. For the student, one pair per step, in order."""
        yield from _CASES[spec.part](self, spec, config, index)


def _encoded(
    vectors: ReferenceVectors, spec: ComponentSpec, config: ModelConfig, index: int
) -> Iterator[tuple[Arrays, np.ndarray]]:
    row = slice(index, index + 1)
    inputs = recorded_tokens(components_of(config), vectors.arrays, row, (spec.name,))
    yield inputs[spec.name], vectors.arrays[f"{STUDENT}.{spec.output}"][row]


def _denoised(
    vectors: ReferenceVectors, spec: ComponentSpec, config: ModelConfig, index: int
) -> Iterator[tuple[Arrays, np.ndarray]]:
    latents, velocities, schedule = vectors.arrays[LATENTS][index], vectors.arrays[VELOCITIES][index], schedule_of(config)
    for step in range(len(latents)):
        inputs = {LATENT: latents[step][None], TIME: schedule.features(step), **vectors.text(index, config)}
        yield inputs, velocities[step][None]


def _decoded(
    vectors: ReferenceVectors, spec: ComponentSpec, config: ModelConfig, index: int
) -> Iterator[tuple[Arrays, np.ndarray]]:
    row = slice(index, index + 1)
    yield {LATENT: vectors.arrays[LATENT][row]}, vectors.arrays[PICTURE][row]


_CASES = {"encode": _encoded, "denoise": _denoised, "decode": _decoded}


def schedule_of(config: ModelConfig) -> Schedule:
    """The few-step schedule of a model."""
    return family_of(config).schedule(config)


def reference_runners(checkpoint: Checkpoint, width: str, parts: Sequence[Part] = PARTS) -> dict[Role, Runner]:
    """The fp32 reference networks of the given parts, as functions of named arrays. Absent parts are left out."""
    return {
        spec.name: _runner(spec, load_component(checkpoint, spec.name, width))
        for spec in components_of(checkpoint.config)
        if spec.part in parts
    }


def _runner(spec: ComponentSpec, network: nn.Module) -> Runner:
    def run(x: Mapping[str, np.ndarray]) -> Arrays:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in x.items()}
        with torch.inference_mode():
            return {spec.output: spec.apply(network, tensors).numpy()}

    return run


def make_vectors(
    checkpoint: Checkpoint,
    plan: ExportPlan,
    prompts: Sequence[str],
    seeds: Sequence[int] | None = None,
    on_progress: OnProgress = ignore_progress,
) -> ReferenceVectors:
    """Draw each prompt with the reference and keep every component's inputs and outputs.

    Text streams that the checkpoint has no encoder for get seeded standard normal embeddings. An encoder without a tokenizer
    gets seeded random tokens.

    Args:
        checkpoint: The checkpoint to draw with.
        plan: Gives the width and the shape of the latent.
        prompts: One picture is drawn for each.
        seeds: One per prompt. Default: 0, 1, ...
        on_progress: Called with the number of finished calls of the student, and their total.

    Raises:
        BadInput: if the reference itself returns NaN or infinity.
    """
    config, components = checkpoint.config, components_of(checkpoint.config)
    runners, schedule = reference_runners(checkpoint, plan.width), schedule_of(config)
    student = components.denoiser.name
    runners[student] = counted(runners[student], len(prompts) * (len(schedule.sigmas) - 1), on_progress)
    pipeline = Pipeline(components, runners, schedule, plan.latent)
    rows: dict[str, list[np.ndarray]] = {}
    seeds = tuple(range(len(prompts)) if seeds is None else seeds)
    for seed, prompt in zip(seeds, prompts, strict=True):
        inputs = prompt_tokens(checkpoint, prompt, seed)
        text = random_text(config, seed) | pipeline.encode(inputs)
        row = token_arrays(components, inputs) | {f"{STUDENT}.{name}": value for name, value in text.items()}
        trace = StudentTrace()
        row["noise"] = noise_for(seed, plan.latent)
        row["latent"] = pipeline.denoise(row["noise"], text, trace)
        row[LATENTS] = np.stack(trace.latents, axis=1)  # (1, steps, C, h, w)
        row[VELOCITIES] = np.stack(trace.velocities, axis=1)  # (1, steps, C, h, w)
        if pipeline.decodes:
            row[PICTURE] = pipeline.decode(row["latent"])
        for name, value in row.items():
            if not np.isfinite(value).all():
                raise BadInput(
                    f"{checkpoint.path}: the reference itself gives values of {name} that are not finite, for {prompt[:80]!r} "
                    f"with seed {seed}; give a checkpoint that draws"
                )
            rows.setdefault(name, []).append(value)
    arrays = {name: np.concatenate(values) for name, values in sorted(rows.items())}
    return ReferenceVectors(tuple(prompts), seeds, arrays)


def with_tuned(vectors: ReferenceVectors, student: Student, config: ModelConfig) -> ReferenceVectors:
    """Add `tuned.velocities` (P, steps, C, h, w): the outputs of a tuned student for the reference's inputs."""
    spec = components_of(config).denoiser
    run, rows = _runner(spec, student), []
    for index in range(len(vectors.prompts)):
        rows += [run(inputs)[spec.output] for inputs, _ in vectors.cases(spec, config, index)]
    velocities = np.concatenate(rows).reshape(vectors.arrays[LATENTS].shape)
    return replace(vectors, arrays=dict(sorted({**vectors.arrays, TUNED: velocities}.items())))


def prompt_tokens(checkpoint: Checkpoint, prompt: str, seed: int) -> dict[Role, Arrays]:
    """Tokens and mask (1, L) for every text encoder; an encoder without a tokenizer gets seeded random tokens."""
    found: dict[Role, Arrays] = {}
    for spec in components_of(checkpoint.config).encoders:
        if tokenizer := checkpoint.tokenizers.get(spec.name):
            found[spec.name] = tokenize(tokenizer, prompt, spec.reads)
        else:
            drawn = np.random.default_rng(seed).integers(0, spec.reads.vocab, (1, spec.reads.length), dtype=np.int32)
            found[spec.name] = {TOKENS: drawn, MASK: np.ones((1, spec.reads.length), np.float32)}
    return found


def random_text(config: ModelConfig, seed: int) -> Arrays:
    """Seeded standard normal embeddings (1, L, dim) and masks of ones (1, L) for every text stream; zeros for absent ones."""
    rng = np.random.default_rng(seed)
    out: Arrays = {}
    for s in config.student.text_streams:
        out[s.name] = rng.standard_normal((1, s.length, s.dim), dtype=np.float32)
        out[f"{s.name}_mask"] = np.ones((1, s.length), dtype=np.float32)
    return out | absent_text(config)
