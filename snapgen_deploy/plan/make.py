"""Makes the export plan of a checkpoint and a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from snapgen_deploy.device_profiles import Profile
from snapgen_deploy.errors import BadInput, Refused, nearest
from snapgen_deploy.families.registry import family_of
from snapgen_deploy.models.config import ModelConfig
from snapgen_deploy.plan.plan import ExportPlan
from snapgen_deploy.plan.sizes import sizes_of, untrained_sizes
from snapgen_deploy.plan.targets import check_systems, pick_targets, plan_target, with_arithmetic
from snapgen_deploy.plan.widths import Estimator, JudgedBy, judge_width, memory_hint
from snapgen_deploy.system.documents import several


def make_plan(
    config: ModelConfig,
    profile: Profile,
    *,
    width: str | None = None,
    targets: Sequence[str] = (),
    precision: str | None = None,
    resolution: tuple[int, int] | None = None,
    other_resolutions: Sequence[tuple[int, int]] = (),
    estimator: Estimator | None = None,
    max_latency_ms: float | None = None,
    batch: int = 1,
) -> ExportPlan:
    """Pick the widest sub-network that fits the device's memory budget and, if its latency is known, the latency budget.

    The profile's latency budget is compared with a published time if there is one, else with the estimate; `max_latency_ms`
    replaces it and is compared with the estimate's upper end. A width, targets, a precision or a resolution that the user
    names override the profile's. Of several picture sizes the largest decides on memory, and the first, the default one, on
    latency. A call of the files draws `batch` pictures.

    Raises:
        BadInput: if a name is unknown, a picture size does not fit the network, or a calibrated precision is combined with
            several picture sizes.
        Refused: if the named width does not fit the memory budget or `max_latency_ms`, no width fits, or a core of the device
            lacks the arithmetic of the named precision.
    """
    sizes = sizes_of(config, (resolution or config.resolution, *other_resolutions))
    size, family = sizes[0].resolution, family_of(config)
    form = family.form(config, sizes[0].latent[1:])
    picked, left_out = pick_targets(profile, targets, several=len(sizes) > 1, batch=batch)
    picked, changed = with_arithmetic(picked, precision, profile)
    chosen = [plan_target(t, precision, form, profile) for t in picked]
    if len(sizes) > 1:
        check_systems(chosen)
    calibrated = [t for t in chosen if t.precision in (*t.spec.calibrated, "mixed")]
    if len(sizes) > 1 and calibrated:
        one = calibrated[0]  # its ranges are found on trajectories of one picture size
        raise BadInput(
            f"{one.key}: {one.precision} is calibrated at one picture size; give one --resolution, or another precision"
        )
    widths = sorted(config.student.widths, key=lambda w: -config.student.widths[w])
    if width is not None and width not in widths:
        raise BadInput(f"the checkpoint has no width '{width}': it has {several(list(widths))}{nearest(width, widths)}")
    limits = JudgedBy(estimator, max_latency_ms, batch)
    judged = [judge_width(config, profile, w, chosen, sizes, limits) for w in widths]
    if width is None:
        fitting = [j for j in judged if not j.obstacles]
        if not fitting:
            raise Refused(
                f"no width of {config.name} fits {profile.name}: {'; '.join(j.line for j in judged)}{memory_hint(judged)}"
            )
        pick, asked = fitting[0], []
    else:
        pick = next(j for j in judged if j.width == width)
        asked = [f"width {width} was asked for"]
        if "memory" in pick.obstacles or (max_latency_ms is not None and pick.obstacles):
            fix = "choose a narrower width, a smaller --resolution or another device"
            raise Refused(f"{pick.line} on {profile.name}; {fix}{memory_hint([pick])}")
    return ExportPlan(
        device=profile.id,
        device_name=profile.name,
        os=profile.os,
        width=pick.width,
        reasons=(*asked, *(j.line for j in judged), *left_out, *changed, *_of_text(config), *_of_calls(config, batch)),
        targets=tuple(chosen),
        resolution=size,
        latent=sizes[0].latent,
        memory_bytes=pick.memory,
        memory_budget=profile.memory_budget_bytes,
        guards=profile.guards,
        latency_ms=pick.latency_ms,
        latency_budget_ms=max_latency_ms or (profile.latency_budget.value if profile.latency_budget else None),
        offers=tuple(o.target.key for o in profile.offers if o.target.key not in {t.key for t in chosen}),
        warnings=untrained_sizes(config, [s.resolution for s in sizes]),
        batch=batch,
        other_sizes=tuple(
            replace(s, forms=tuple((t.key, family.form(config, s.latent[1:])) for t in chosen)) for s in sizes[1:]
        ),
    )


def _of_text(config: ModelConfig) -> list[str]:
    """Lines about text streams that are left out."""
    return [f"text stream {name} stays empty: its embeddings and mask are zeros" for name in config.absent_streams]


def _of_calls(config: ModelConfig, batch: int) -> list[str]:
    """Lines about the calls where they have more than one row."""
    found = [f"batch of {batch}: a call draws {batch} pictures"] if batch > 1 else []
    if not config.guided:
        return found
    rows = f"{2 * batch} rows, prompt and negative prompt{'s' * (batch > 1)}"
    return [*found, f"guidance of scale {config.guidance_scale:g}: every call of the student has {rows}"]
