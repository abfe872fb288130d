"""The reference held against golden vectors, before anything is converted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from snapgen_deploy.check.causes import find_cause, golden_error
from snapgen_deploy.check.gates import (
    GOLDEN_ERROR,
    GOLDEN_PSNR,
    GOLDEN_TOKENS,
    Gate,
    at_least,
    at_most,
    golden_latent,
    golden_psnr,
    psnr,
)
from snapgen_deploy.checkpoint import Checkpoint, CheckpointPlace
from snapgen_deploy.checkpoint.networks import load_component, widths_of
from snapgen_deploy.drawing.pipeline import Pipeline
from snapgen_deploy.drawing.reference import reference_runners, schedule_of
from snapgen_deploy.families.component import ComponentSpec
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.golden.vectors import PIPELINE, GoldenVectors
from snapgen_deploy.models import Schedule, sigmas
from snapgen_deploy.models.schedule import EULER
from snapgen_deploy.system.progress import OnProgress, ignore_progress

OF_REFERENCE = "reference"  # stands for a target in gates
_SCALES = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 7.5, 8.0, 10.0)  # of guidance in the wild
SHIFTS = (1.0, 1.15, 2.0, 3.0, 3.16, 5.0, 6.0)  # of schedules in the wild


@dataclass(frozen=True)
class GoldenTask:
    """A reference that is to be held against golden vectors, for a process of its own."""

    checkpoint: CheckpointPlace
    width: str
    golden: GoldenVectors
    threads: int
    seconds: float  # how long to look for the cause of each component that disagrees


@dataclass(frozen=True)
class HeldReference:
    """Gates of the reference, and why components and the picture disagree, by name."""

    gates: tuple[Gate, ...]
    causes: dict[str, str]
    found: dict[str, dict[str, Any]]  # the same as plain data


def hold_reference(task: GoldenTask, on_progress: OnProgress = ignore_progress) -> HeldReference:
    """In a child process: every component on its golden calls, then the whole pictures where the components agree."""
    torch.set_num_threads(task.threads)
    checkpoint, golden = task.checkpoint.open(), task.golden
    components, total = components_of(checkpoint.config), len(golden.counts)
    gates: list[Gate] = []
    causes: dict[str, str] = {}
    found: dict[str, dict[str, Any]] = {}
    for done, (role, cases) in enumerate(golden.cases.items()):
        spec = components[role]
        network = load_component(checkpoint, role, task.width)
        error = golden_error(spec, network, cases.rows())
        count = f"largest over {len(cases)} call{'s' * (len(cases) > 1)}"
        gates.append(at_most(OF_REFERENCE, role, GOLDEN_ERROR, error, golden.error, count))
        if gates[-1].verdict == "failed":
            other = _other_width(checkpoint, spec, task, cases_error=error)
            cause = find_cause(spec, network, cases, golden.error, 0 if other else task.seconds)
            causes[role] = other or cause.said()
            found[role] = {"width": other} if other else cause.as_dict()
        on_progress(done + 1, total)
    if golden.picture is not None:
        drawn = _hold_pictures(checkpoint, task, sound=not causes)
        gates += drawn.gates
        causes |= drawn.causes
        found |= drawn.found
    return HeldReference(tuple(gates), causes, found)


def _other_width(checkpoint: Checkpoint, spec: ComponentSpec, task: GoldenTask, cases_error: float) -> str:
    """That the vectors are of another width, where one agrees; "" else."""
    if not spec.elastic or task.golden.width:
        return ""
    row = [next(task.golden.cases[spec.name].rows())]
    for width in widths_of(checkpoint):
        if width != task.width and golden_error(spec, load_component(checkpoint, spec.name, width), row) <= task.golden.error:
            return f"the vectors are of width {width}, not {task.width}; pass --width {width}"
    return ""


def _hold_pictures(checkpoint: Checkpoint, task: GoldenTask, *, sound: bool) -> HeldReference:
    """The whole pictures; `sound`: whether all components agree, so that what is left is how they are put together."""
    golden = task.golden
    whole = golden.picture
    assert whole is not None
    gates = [
        at_most(OF_REFERENCE, role, GOLDEN_TOKENS, float(off), 0.0, "tokens that the checkpoint's tokenizer makes otherwise")
        for role, off in whole.tokens_off.items()
        if role in checkpoint.tokenizers
    ]
    causes = {g.component: "the tokenizer is not the one that made these tokens, or pads otherwise" for g in gates if g.value}
    schedule = schedule_of(checkpoint.config)
    runners = reference_runners(checkpoint, task.width)
    pipeline = Pipeline(components_of(checkpoint.config), runners, schedule, golden.drawing.latent)
    worst = golden_psnr(pipeline, whole)
    gates.append(at_least(OF_REFERENCE, PIPELINE, GOLDEN_PSNR, worst, golden.psnr, f"dB, least of {len(whole)} pictures"))
    if gates[-1].verdict == "failed":
        causes[PIPELINE] = _picture_cause(pipeline, golden) if sound else "components disagree, see there"
    return HeldReference(tuple(gates), causes, {name: {"said": text} for name, text in causes.items()})


def _picture_cause(pipeline: Pipeline, golden: GoldenVectors) -> str:
    """What of the way from noise to picture the golden pictures did otherwise."""
    whole, ours = golden.picture, pipeline.schedule
    assert whole is not None
    one = replace(whole, noise=whole.noise[:1])
    picture = None if whole.picture is None else whole.picture[:1]
    if picture is not None and pipeline.decodes:
        drawn = pipeline.decode(golden_latent(pipeline, whole, [0]))
        for said, stored in (("[0, 1]", picture * 2 - 1), ("0 ... 255", picture / 127.5 - 1)):
            if psnr(drawn, stored) >= golden.psnr:
                return f"it agrees with pixel range: {said} in the file (here -1 ... 1); write pipeline.picture in -1 ... 1"
        if psnr(drawn[:, ::-1].copy(), picture) >= golden.psnr:
            return "it agrees with channels: blue, green, red in the file (here red, green, blue)"
    if whole.negative is not None:
        near = {scale: golden_psnr(replace(pipeline, guidance=scale), one) for scale in _SCALES}
        best, ours_is = max(near, key=near.__getitem__), pipeline.components.denoiser.guidance
        if best != ours_is and near[best] >= golden.psnr:
            return f"it agrees with guidance scale: {best:g} (here {ours_is:g}); set guidance_scale to {best:g}"
    for shift in SHIFTS if ours.sampler == EULER and not ours.timesteps else ():
        steps = len(ours.sigmas) - 1
        other = Schedule(sigmas(steps, shift), shift, ours.time_features, ours.sampler)
        if shift != ours.shift and golden_psnr(replace(pipeline, schedule=other), one) >= golden.psnr:
            return f"it agrees with shift of the schedule: {shift:g} (here {ours.shift:g}); set shift to {shift:g}"
    return f"no cause found: neither the pixel range nor a shift of {', '.join(f'{s:g}' for s in SHIFTS)} makes it agree"
