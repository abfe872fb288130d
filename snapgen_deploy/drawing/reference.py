"""Pictures drawn by the reference, kept as test vectors: inputs and expected outputs of every component."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.checkpoint.networks import load_component
from snapgen_deploy.drawing.pipeline import (
    Condition,
    Pipeline,
    StudentTrace,
    counted,
    noise_for,
    stacked_rows,
    step_inputs,
    tokenize,
)
from snapgen_deploy.drawing.ports import (
    absent_text,
    condition_arrays,
    empty_text,
    recorded_conditions,
    recorded_tokens,
    text_inputs,
)
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Arrays, Role, Runner
from snapgen_deploy.families.component import LATENT, MASK, PARTS, PICTURE, TOKENS, ComponentSpec, Part
from snapgen_deploy.families.names import STUDENT
from snapgen_deploy.families.registry import components_of, family_of
from snapgen_deploy.models import ModelConfig, Schedule, Student
from snapgen_deploy.plan.plan import ExportPlan
from snapgen_deploy.system.progress import OnProgress, ignore_progress

# Names of arrays in test vectors, besides those of the ports. The student's text inputs are named `student.<port>`.
LATENTS, VELOCITIES, TUNED = f"{STUDENT}.latents", f"{STUDENT}.velocities", "tuned.velocities"
_NEGATIVE_SEED = 1 << 32  # of the tokens of a negative prompt that nothing reads


@dataclass(frozen=True)
class ReferenceVectors:
    """Inputs and outputs of the reference, each array stacked over P prompts."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    arrays: Arrays

    def conditions(self, rows: Sequence[int], config: ModelConfig, roles: Collection[Role] | None = None) -> list[Condition]:
        """What some of the pictures are of; the text is what the reference's encoders made of it."""
        components, text = components_of(config), text_inputs(config)
        return recorded_conditions(components, self.arrays, rows, text=text, roles=roles, prefix=f"{STUDENT}.")

    def cases(self, spec: ComponentSpec, config: ModelConfig, rows: Sequence[int]) -> Iterator[tuple[Arrays, Arrays]]:
        """Inputs and outputs of a reference component in calls for some of the prompts together.

        For the student, one pair per step, in order.
        """
        yield from _CASES[spec.part](self, spec, config, list(rows))


_Case = Iterator[tuple[Arrays, Arrays]]


def _encoded(vectors: ReferenceVectors, spec: ComponentSpec, config: ModelConfig, rows: list[int]) -> _Case:
    inputs = recorded_tokens(components_of(config), vectors.arrays, rows, (spec.name,))
    yield inputs[spec.name], {name: vectors.arrays[f"{STUDENT}.{name}"][rows] for name in spec.outputs}


def _denoised(vectors: ReferenceVectors, spec: ComponentSpec, config: ModelConfig, rows: list[int]) -> _Case:
    latents, velocities, schedule = vectors.arrays[LATENTS][rows], vectors.arrays[VELOCITIES][rows], schedule_of(config)
    text = stacked_rows([condition.text for condition in vectors.conditions(rows, config, ())])
    for step in range(latents.shape[1]):
        expected = velocities[:, step]  # (n, C, h, w), with guidance (n, 2, C, h, w)
        if spec.rows > 1:
            expected = expected.swapaxes(0, 1).reshape(-1, *expected.shape[2:])
        yield step_inputs(latents[:, step], schedule.features(step), text, spec.rows), {spec.output: expected}


def _decoded(vectors: ReferenceVectors, spec: ComponentSpec, config: ModelConfig, rows: list[int]) -> _Case:
    yield {LATENT: vectors.arrays[LATENT][rows]}, {spec.output: vectors.arrays[PICTURE][rows]}


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
            return {name: value.numpy() for name, value in spec.run(network, tensors).items()}

    return run


def make_vectors(
    checkpoint: Checkpoint,
    plan: ExportPlan,
    prompts: Sequence[str],
    seeds: Sequence[int] | None = None,
    on_progress: OnProgress = ignore_progress,
) -> ReferenceVectors:
    """Draw each prompt with the reference and keep every component's inputs and outputs.

    Text streams that the checkpoint has no encoder for get seeded standard normal embeddings, of the negative prompt zeros. An
    encoder without a tokenizer gets seeded random tokens.

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
        conditions = encoded_conditions(checkpoint, pipeline, prompt, seed)
        row = condition_arrays(components, conditions, f"{STUDENT}.")
        trace = StudentTrace()
        row["noise"] = noise_for(seed, plan.latent, plan.noise, schedule.fresh)
        row["latent"] = pipeline.denoise(row["noise"], stacked_rows([c.text for c in conditions]), trace)
        row[LATENTS], row[VELOCITIES] = trace.arrays()
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
    """Add `tuned.velocities`, shaped as the reference's: the outputs of a tuned student for the reference's inputs."""
    spec = components_of(config).denoiser
    run, rows = _runner(spec, student), []
    for index in range(len(vectors.prompts)):
        rows += [run(inputs)[spec.output] for inputs, _ in vectors.cases(spec, config, [index])]
    velocities = np.concatenate(rows).reshape(vectors.arrays[VELOCITIES].shape)
    return replace(vectors, arrays=dict(sorted({**vectors.arrays, TUNED: velocities}.items())))


def encoded_conditions(checkpoint: Checkpoint, pipeline: Pipeline, prompt: str, seed: int) -> list[Condition]:
    """What the reference draws for a prompt: the prompt, and with guidance the negative prompt.

    `text` holds all of the student's text inputs. Streams without an encoder get `random_text`; of the negative prompt zeros.
    """
    config = checkpoint.config
    found = [Condition(prompt_tokens(checkpoint, prompt, seed), random_text(config, seed))]
    if config.guided:
        tokens = prompt_tokens(checkpoint, config.negative_prompt, _NEGATIVE_SEED)
        found.append(Condition(tokens, empty_text(config, [s.name for s in config.student.text_streams])))
    return [replace(c, text=pipeline.condition(c)) for c in found]


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
    """Seeded standard normal embeddings and pooled vectors, and masks of ones, for every text stream; zeros for absent ones."""
    rng = np.random.default_rng(seed)
    out: Arrays = {}
    for s in config.student.text_streams:
        for name, shape in s.shapes.items():
            seen = np.ones((1, *shape), np.float32)
            out[name] = seen if name == f"{s.name}_mask" else rng.standard_normal((1, *shape), dtype=np.float32)
    return out | absent_text(config)
