"""Checks the options of `export --precision mixed` and adds them to the plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.precisions import PRECISIONS
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.plan.mixed import levels_for, mixed_settings
from snapgen_deploy.plan.plan import ExportPlan, TargetPlan
from snapgen_deploy.quantise.executors import executor_of

_BITS, _ITERATIONS, PICTURES, EXECUTOR = 4.3, 1000, 256, "here"


def with_mixed(
    plan: ExportPlan,
    checkpoint: Checkpoint,
    *,
    bits: float | None,
    iterations: int | None,
    calibration: Path | None,
    pictures: int | None,
    executor: str | None,
) -> ExportPlan:
    """The plan with its mixed-precision settings, if a target has that precision; None stands for an option's default.

    Calibration prompts are the file's, else those that ship for the embedded checkpoint, else the checkpoint's own.

    Raises:
        BadInput: if an option is given without a mixed target, a target has no palettes of so few bits, or `mixed_settings`
            refuses a value.
    """
    given = {
        "--bits": bits,
        "--tune-iterations": iterations,
        "--calibration-pictures": pictures,
        "--executor": executor,
    }
    if all(t.precision != "mixed" for t in plan.targets):
        named = [option for option, value in given.items() if value is not None]
        if named:
            raise BadInput(f"{named[0]} belongs to mixed precision; add --precision mixed")
        return plan
    if not components_of(checkpoint.config).denoiser.takes_recipe:
        family = checkpoint.config.family
        raise BadInput(f"--precision mixed: a student of {family} takes no recipe; choose another of `devices --precisions`")
    executor_of(executor or EXECUTOR)
    wanted = _BITS if bits is None else bits
    levels = levels_for(wanted)
    for target in (t for t in plan.targets if t.precision == "mixed"):
        fewest = min(target.spec.palette_bits)
        if min(levels) < fewest:
            raise BadInput(
                f"--bits: got {wanted:g}, and {target.key} has no palettes of less than {fewest} bits; choose {fewest} to 8"
            )
    if calibration is not None and not checkpoint.reads_prompts:
        raise BadInput("--calibration: this checkpoint has no text encoder with a tokenizer that could read it; leave it out")
    prompts, source = _prompts(checkpoint, calibration)
    settings = mixed_settings(
        bits=wanted,
        iterations=_ITERATIONS if iterations is None else iterations,
        pictures=PICTURES if pictures is None else pictures,
        prompts=prompts,
        reads_prompts=checkpoint.reads_prompts,
        source=source,
    )
    targets = tuple(_held_to(target, wanted) for target in plan.targets)
    return replace(plan, mixed=settings, targets=targets)


def _held_to(target: TargetPlan, bits: float) -> TargetPlan:
    """A mixed target below 4 bits may lose as many points as `palette4`, unless the profile has a limit of its own."""
    if target.precision != "mixed" or bits >= 4 or "score_loss" in dict(target.own_limits):
        return target
    return replace(target, own_limits=(*target.own_limits, ("score_loss", PRECISIONS["palette4"].limits.score_loss)))


def _prompts(checkpoint: Checkpoint, path: Path | None) -> tuple[tuple[str, ...], str]:
    """Calibration prompts and where they are from."""
    from snapgen_deploy.drawing.prompts import CALIBRATION, is_embedded, own_prompts, read_samples

    if path is not None:
        return tuple(s.prompt for s in read_samples(path, 0, "calibration")), str(path)
    own = own_prompts(checkpoint, CALIBRATION, checkpoint.config.prompts)
    return own, CALIBRATION if is_embedded(checkpoint) else f"the checkpoint {checkpoint.path.name}"
