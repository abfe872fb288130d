"""Chooses the pictures that an export draws, from what the user asked for: gates and preview, fidelity gate, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from snapgen_deploy.check.fidelity import FIDELITY_PICTURES, Fidelity, scorer_of
from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.drawing.prompts import FIDELITY, Sample, check_prompts, own_samples, read_samples, samples_of
from snapgen_deploy.errors import BadInput
from snapgen_deploy.job.calibration import Calibration, calibration_of, is_calibrated
from snapgen_deploy.plan.plan import ExportPlan
from snapgen_deploy.quantise.trajectories import NO_PROMPT

_LARGE = 512 * 512  # pixels above which a reference picture takes minutes


@dataclass(frozen=True)
class Asked:
    """The user's options about pictures; None for an option that was not given."""

    prompts: Path | None = None  # file for gates, preview and fidelity gate
    fidelity: bool = False  # whether exact precisions are judged too
    fidelity_samples: int | None = None
    scorer: str | None = None
    calibration: Path | None = None


@dataclass(frozen=True)
class Pictures:
    """What an export draws."""

    samples: tuple[Sample, ...]  # for gates and preview
    fidelity: Fidelity
    calibration: Calibration
    given: int  # number of prompts that the user gave; gates and preview draw only the first ones
    judged: bool  # whether the fidelity gate judges a target


def pictures_of(checkpoint: Checkpoint, plan: ExportPlan, asked: Asked) -> Pictures:
    """Choose the pictures for a plan.

    Raises:
        BadInput: if an option would have no effect, a file cannot be used, or the tokenizer cannot encode a prompt.
    """
    small = plan.resolution[0] * plan.resolution[1] <= _LARGE
    chosen = prompts_of(checkpoint, asked.prompts)
    own = () if asked.prompts is None else chosen
    fidelity = _fidelity(checkpoint, plan, asked, own, asked.fidelity_samples or (FIDELITY_PICTURES if small else 8))
    if plan.mixed is None and not any(is_calibrated(t) for t in plan.targets):
        _refuse_unused({"--calibration": asked.calibration}, "calibrated and mixed precisions", "choose one by --precision")
    calibration = calibration_of(checkpoint, plan, asked.calibration)
    drawn = (*chosen, *fidelity.samples, *calibration.samples)
    check_prompts(checkpoint, (*(s.prompt for s in drawn), *(plan.mixed.prompts if plan.mixed else ())))
    judged = any(fidelity.judges(t) for t in plan.targets)
    return Pictures(chosen[: 4 if small else 1], fidelity, calibration, given=len(own), judged=judged)


def prompts_of(checkpoint: Checkpoint, path: Path | None) -> tuple[Sample, ...]:
    """The file's prompts, else the checkpoint's; a placeholder for random text if the checkpoint reads no prompts.

    Raises:
        BadInput: if the checkpoint reads no prompts and a file was given, or the file cannot be used.
    """
    if path is not None and not checkpoint.reads_prompts:
        raise BadInput("--prompts: this checkpoint has no text encoder with a tokenizer that could read them; leave it out")
    if path is not None:
        return read_samples(path, 0)
    own = (checkpoint.config.prompts if checkpoint.reads_prompts else ()) or (NO_PROMPT,)
    return samples_of(own, len(own), 0)


def _fidelity(checkpoint: Checkpoint, plan: ExportPlan, asked: Asked, own: Sequence[Sample], count: int) -> Fidelity:
    """The fidelity gate over `count` pictures, with a scorer if it judges a target."""
    samples = _fidelity_samples(checkpoint, own, count)
    fidelity = Fidelity(samples, None, every=asked.fidelity)
    if not any(fidelity.judges(t) for t in plan.targets):
        unused = {"--scorer": asked.scorer, "--fidelity-samples": asked.fidelity_samples}
        _refuse_unused(unused, "the fidelity gate", "add --fidelity")
        return fidelity
    scorer, unscored = scorer_of(checkpoint, asked.scorer, samples, plan.resolution)
    return Fidelity(samples, scorer, unscored, every=asked.fidelity)


def _fidelity_samples(checkpoint: Checkpoint, own: Sequence[Sample], count: int) -> tuple[Sample, ...]:
    """`count` pictures for the fidelity gate: the user's prompts, repeated with new seeds if they are fewer, else our own."""
    if own:
        free = 1 + max(s.seed for s in own)
        return (*own, *samples_of([s.prompt for s in own], max(0, count - len(own)), free))[:count]
    prompts = (checkpoint.config.prompts if checkpoint.tokenizers else ()) or (NO_PROMPT,)
    return own_samples(checkpoint, FIDELITY, prompts, count, 0)


def _refuse_unused(options: Mapping[str, object], user: str, fix: str) -> None:
    """Raise BadInput for the first given option (not None): nothing in the plan would use it."""
    for option, value in options.items():
        if value is not None:
            raise BadInput(f"{option} is for {user}, which no target of this plan has; {fix}, or leave it out")
