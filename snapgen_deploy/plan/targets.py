"""Which targets a plan exports, and how: the profile's, or those that the user names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from snapgen_deploy.device_profiles import Profile, ProfileTarget
from snapgen_deploy.errors import BadInput, Refused, nearest
from snapgen_deploy.export.registry import spec_of, specs
from snapgen_deploy.export.shared.extras import missing_extra
from snapgen_deploy.plan.plan import TargetPlan


def _obstacle(target: ProfileTarget, *, several: bool, batch: int) -> str | None:
    """Why a target cannot be exported here, or not at several picture sizes or with several pictures a call; None if it can."""
    spec = spec_of(target.key)
    if reason := missing_extra(target.key):
        return reason
    if several and spec.one_size:
        return f"it holds one picture size ({spec.one_size})"
    return f"it takes no --batch {batch} ({spec.one_picture})" if batch > 1 and spec.one_picture else None


def pick_targets(
    profile: Profile, wanted: Sequence[str], *, several: bool, batch: int = 1
) -> tuple[list[ProfileTarget], list[str]]:
    """The profile's targets, or the named ones, and a line for each that was left out or that the profile does not have.

    A bare name takes the profile's variant, else the target's first.

    Raises:
        BadInput: if a named target is unknown, its extra is not installed, or it cannot hold several picture sizes or take
            `batch` pictures a call; or if none of the profile's takes them.
    """
    if not wanted:
        obstacles = {t.key: why for t in profile.targets if (why := _obstacle(t, several=several, batch=batch))}
        if batch > 1 and len(obstacles) == len(profile.targets):
            said = "; ".join(f"{key}: {why}" for key, why in obstacles.items())
            raise BadInput(f"--batch {batch}: no target of {profile.id} takes it ({said}); choose one with --target")
        lines = [f"{key} left out: {why}" for key, why in obstacles.items()]
        return [t for t in profile.targets if t.key not in obstacles], lines
    found, lines = [], []
    for text in dict.fromkeys(wanted):
        spec = spec_of(text)
        offered = (*profile.targets, *(o.target for o in profile.offers))
        ours = [t for t in offered if t.key == text or t.target == text]  # the latter of a bare name
        ours.sort(key=lambda t: t.key != spec_of(t.target).key)  # the name's own variant first
        default = ProfileTarget(spec.name, spec.variant, spec.precisions[0], spec.layout)
        chosen = ours[0] if ours else default
        if why := _obstacle(chosen, several=several, batch=batch):
            raise BadInput(f"target {chosen.key} cannot be exported: {why}")
        found.append(chosen)
        if not ours:
            lines.append(f"{chosen.key} is not among the targets of {profile.id}: whether it runs there is not known")
    return list({t.key: t for t in found}.values()), lines  # a bare name and a full one may mean the same


def check_systems(targets: Sequence[TargetPlan]) -> None:
    """Check that every target's oldest system can read a file with several picture sizes.

    Raises:
        BadInput: if one cannot.
    """
    for target in targets:
        system, older = dict(target.options).get("deployment"), target.spec.older_systems
        if older is not None and system in older.deployments:
            raise BadInput(
                f"{target.key}: several resolutions in one package need {older.needed}, the profile has deployment = {system}; "
                "give one --resolution, or another profile"
            )


def with_arithmetic(
    targets: Sequence[ProfileTarget], precision: str | None, profile: Profile
) -> tuple[list[ProfileTarget], list[str]]:
    """The targets, each at a precision that the device's cores compute in, and a line for each that was changed.

    Raises:
        Refused: if a core lacks the arithmetic of the precision that the user asked for.
    """
    found, lines = [], []
    for target in targets:
        spec, chosen = spec_of(target.key), precision or target.precision
        arithmetic = spec.arithmetic.get(chosen, "")
        lacking = profile.isa.lacking(arithmetic) if profile.isa is not None and arithmetic else ()
        why = f"{', '.join(lacking)} of {profile.name} has no {arithmetic} arithmetic, and the runtime refuses such files there"
        if lacking and precision is not None:
            raise Refused(f"{target.key} at {chosen}: {why}; choose --precision {spec.precisions[0]} or another --target")
        if lacking:
            lines.append(f"{target.key} at {spec.precisions[0]}, not {chosen}: {why}")
        found.append(replace(target, precision=spec.precisions[0], limits=()) if lacking else target)
    return found, lines


def plan_target(target: ProfileTarget, precision: str | None, form: str, profile: Profile) -> TargetPlan:
    """How a target is exported: at the given precision, else the profile's.

    Raises:
        BadInput: if the target does not have the precision, or the profile lacks a figure that the target needs.
    """
    spec = spec_of(target.key)
    if precision is not None and precision not in spec.precisions:
        near = nearest(precision, spec.precisions)
        have = [s.key for s in specs().values() if precision in s.precisions]
        near = f"; choose --target {' or '.join(have)}, which {'has' if len(have) == 1 else 'have'} it" if have else near
        raise BadInput(f"target {target.key} has no precision '{precision}': it offers {', '.join(spec.precisions)}{near}")
    chosen = precision or target.precision
    own = target.limits if chosen == target.precision else ()
    if absent := [name for name in spec.from_figures if name not in profile.figures]:
        raise BadInput(f"target {target.key} needs the figure {absent[0]}, which the profile {profile.id} does not have")
    figures = tuple((name, f"{profile.figures[name].value:g}") for name in spec.from_figures)
    options = (*target.options, *figures)
    return TargetPlan(target.target, target.variant, chosen, target.layout, form, options, own_limits=own)
