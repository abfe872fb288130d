"""The export plan: which sub-network, which targets, which forms, and why.

Memory figures are estimates: bytes of the weights at the target's precision, and the largest activations of one layer.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from snapgen_deploy.device_profiles import (
    PRECISIONS,
    TARGETS,
    Limits,
    Profile,
    ProfileTarget,
    TargetSpec,
    spaced,
    spec_of,
    target_keys,
    variants_of,
)
from snapgen_deploy.errors import BadInput, Refused, nearest
from snapgen_deploy.export.extras import missing_extra
from snapgen_deploy.models.config import ModelConfig
from snapgen_deploy.quantise.settings import MixedSettings
from snapgen_deploy.sizes import Size, check_systems, size_name, sizes_of

WEIGHT_BYTES = {name: precision.weight_bytes for name, precision in PRECISIONS.items()}

# The stored choice of kernel form of the local attention (`export --tune` measures instead). For 4096 tokens, 16 heads,
# B = 16, r = 1, fp32, on two x86-64 threads, the loop over blocks took 58 ms against 74 (batched) and 64 (per head) in
# onnxruntime 1.31, and 139 against 164 and 141 in ExecuTorch 1.4.1 with XNNPACK. On small maps all forms run in a few ms, and
# the batched one has the fewest operators to lower and load.
# On the Neural Engine the loop over blocks is what SnapGen++ describes (arXiv 2601.08303).
LARGE_MAP_FORM, SMALL_MAP_FORM = "loop", "batched"
SMALL_MAP_TOKENS = 1024


def local_form(config: ModelConfig, latent: tuple[int, int, int]) -> str:
    """The stored choice of kernel form for a latent (channels, height, width)."""
    rows, cols = config.student.grid(latent[1], latent[2])
    return SMALL_MAP_FORM if rows * cols <= SMALL_MAP_TOKENS else LARGE_MAP_FORM


class LatencyEstimate(Protocol):
    """What an estimator says of one width; times in ms of one picture."""

    @property
    def ms(self) -> float:
        """The estimate."""
        ...

    @property
    def high(self) -> float:
        """Its upper end."""
        ...

    @property
    def line(self) -> str:
        """It, its interval and its basis, for people."""
        ...


Estimator = Callable[[str, str], LatencyEstimate | None]  # width, target key; None where there is no basis


@dataclass(frozen=True)
class TargetPlan:
    """How one target of the plan is exported."""

    target: str  # e.g. "executorch"
    variant: str  # e.g. "xnnpack"; "" where the target has none
    precision: str  # e.g. "fp32"
    layout: str  # "token" or "channels"
    form: str  # kernel form of the local attention: "loop", "batched" or "per_head"
    options: tuple[tuple[str, str], ...] = ()  # e.g. (("deployment", "iOS18"),)
    form_ms: tuple[tuple[str, float], ...] = ()  # ms of a layer per form, the quickest first, where it was tuned here
    own_limits: tuple[tuple[str, float], ...] = ()  # the profile's, in place of the precision's

    @property
    def key(self) -> str:
        """`name` or `name:variant`, as on the command line."""
        return f"{self.target}:{self.variant}" if self.variant else self.target

    @property
    def system(self) -> str:
        """The oldest system that runs its files, such as `iOS 18`; "" where nothing says."""
        return spaced(dict(self.options).get("deployment", ""))

    @property
    def limits(self) -> Limits:
        """What the exported files are held to."""
        return replace(PRECISIONS[self.precision].limits, **dict(self.own_limits))

    @property
    def exact(self) -> bool:
        """Whether this is the target's own default, whose files differ from the reference by rounding only."""
        return self.precision == self.spec.precisions[0]

    @property
    def spec(self) -> TargetSpec:
        """What the target offers."""
        return spec_of(self.target, self.variant)


@dataclass(frozen=True)
class ExportPlan:
    """Everything that decides what an export writes."""

    device: str
    device_name: str
    width: str
    reasons: tuple[str, ...]  # why this width and these targets, a line each
    targets: tuple[TargetPlan, ...]
    resolution: tuple[int, int]  # picture height, width in pixels
    latent: tuple[int, int, int]  # channels, height, width
    memory_bytes: int  # estimated peak of weights and activations on the device, over the targets
    memory_budget: int | None  # bytes; None where the profile has no figure
    latency_ms: float | None  # of one picture; None where the profile has no basis for this model and size
    latency_budget_ms: float | None
    other_sizes: tuple[Size, ...] = ()  # beside `resolution`, which is the default one
    offers: tuple[str, ...] = ()  # keys of targets that the device runs, too, and that are exported when asked for
    mixed: MixedSettings | None = None  # of targets with precision "mixed"

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of all picture sizes, the default one first."""
        return (size_name(self.resolution), *(s.name for s in self.other_sizes))

    def at(self, size: str) -> ExportPlan:
        """The plan of one of `sizes` alone."""
        if size == self.sizes[0]:
            return replace(self, other_sizes=())
        found = next(s for s in self.other_sizes if s.name == size)
        forms = dict(found.forms)
        targets = tuple(replace(t, form=forms.get(t.key, t.form), form_ms=()) for t in self.targets)
        return replace(self, resolution=found.resolution, latent=found.latent, targets=targets, other_sizes=())


def target_at(plan: ExportPlan, key: str) -> TargetPlan:
    """The target of a plan by its key."""
    return next(t for t in plan.targets if t.key == key)


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
) -> ExportPlan:
    """Pick the widest sub-network that fits the device's memory and, where there is a basis, its latency.

    The profile's latency budget is held against a published time where there is one, else against the estimate;
    `max_latency_ms` in its place against the estimate's upper end. A width, targets, a precision or a resolution that the
    user names win over the profile's; Refused (exit 3) when the named width does not fit the memory or `max_latency_ms`, or
    no width fits. BadInput for names that are not known and inadmissible sizes. Of several sizes the most demanding decides on
    memory, and the first, the default one, on latency.
    """
    sizes = sizes_of(config, (resolution or config.resolution, *other_resolutions))
    size, form = sizes[0].resolution, local_form(config, sizes[0].latent)
    picked, left_out = _targets(profile, targets, several=len(sizes) > 1)
    chosen = [_target(t, precision, form, profile) for t in picked]
    check_systems(sizes, {t.key: dict(t.options).get("deployment", "") for t in chosen})
    calibrated = [t for t in chosen if t.precision in (*t.spec.calibrated, "mixed")]
    if len(sizes) > 1 and calibrated:
        one = calibrated[0]  # its ranges are found on trajectories of one picture size
        raise BadInput(
            f"{one.key}: {one.precision} is calibrated at one picture size; give one --resolution, or another precision"
        )
    widths = sorted(config.student.widths, key=lambda w: -config.student.widths[w])
    if width is not None and width not in widths:
        raise BadInput(f"the checkpoint has no width '{width}': it has {', '.join(widths)}{nearest(width, widths)}")
    limits = _Limits(estimator, max_latency_ms)
    judged = [_judge(config, profile, w, chosen, sizes, limits) for w in widths]
    if width is None:
        fitting = [j for j in judged if not j.obstacles]
        if not fitting:
            raise Refused(f"no width of {config.name} fits {profile.name}: {'; '.join(j.line for j in judged)}{_hint(judged)}")
        pick, asked = fitting[0], []
    else:
        pick = next(j for j in judged if j.width == width)
        asked = [f"width {width} was asked for"]
        if "memory" in pick.obstacles or (max_latency_ms is not None and pick.obstacles):
            mend = "choose a narrower width, a smaller --resolution or another device"
            raise Refused(f"{pick.line} on {profile.name}; {mend}{_hint([pick])}")
    return ExportPlan(
        device=profile.id,
        device_name=profile.name,
        width=pick.width,
        reasons=(*asked, *(j.line for j in judged), *left_out),
        targets=tuple(chosen),
        resolution=size,
        latent=sizes[0].latent,
        memory_bytes=pick.memory,
        memory_budget=profile.memory_budget_bytes,
        latency_ms=pick.latency_ms,
        latency_budget_ms=max_latency_ms or (profile.latency_budget.value if profile.latency_budget else None),
        offers=tuple(o.target.key for o in profile.offers if o.target.key not in {t.key for t in chosen}),
        other_sizes=tuple(replace(s, forms=tuple((t.key, local_form(config, s.latent)) for t in chosen)) for s in sizes[1:]),
    )


def _hint(judged: Sequence[_Judged]) -> str:
    """What to say where memory stands in the way."""
    short = any("memory" in j.obstacles for j in judged)
    return "; where the app may take more memory, say how much with --memory-budget" if short else ""


@dataclass(frozen=True)
class _Limits:
    estimator: Estimator | None
    max_latency_ms: float | None


@dataclass(frozen=True)
class _Judged:
    width: str
    memory: int
    latency_ms: float | None
    obstacles: tuple[str, ...]
    line: str


def _judge(
    config: ModelConfig,
    profile: Profile,
    width: str,
    targets: Sequence[TargetPlan],
    sizes: Sequence[Size],
    limits: _Limits,
) -> _Judged:
    """One width against the budgets, with its figures in a line."""
    weight_bytes = max(WEIGHT_BYTES[t.precision] for t in targets)
    largest = max(sizes, key=lambda s: s.resolution[0] * s.resolution[1])  # all activations grow with the area
    memory = estimate_memory(config, width, largest.latent, largest.resolution, weight_bytes)
    obstacles: list[str] = []
    said = [f"memory {memory / 1e9:.3g} GB (estimate)"]
    if len(sizes) > 1:
        said[0] += f" at {largest.name}"
    budget = profile.memory_budget_bytes
    if budget is not None:
        said[0] += f" of {budget / 1e9:g} GB"
        if not memory <= budget:
            obstacles.append("memory")
    latency, words, obstacle = _latency(config, profile, width, targets, sizes[0].resolution, limits)
    said.append(words)
    if obstacle:
        obstacles.append(obstacle)
    verdict = f"does not fit ({', '.join(obstacles)})" if obstacles else "fits"
    return _Judged(width, memory, latency, tuple(obstacles), f"{width} {verdict}: {', '.join(said)}")


def _latency(
    config: ModelConfig,
    profile: Profile,
    width: str,
    targets: Sequence[TargetPlan],
    size: tuple[int, int],
    limits: _Limits,
) -> tuple[float | None, str, str]:
    """Time of a picture in ms where there is a basis, what to say of it, and what stands in the way, if anything."""
    budget = profile.latency_budget
    if limits.max_latency_ms is not None:
        estimate = _estimate(width, targets, limits)
        if estimate is None:
            return None, "no basis for an estimate of its latency", "latency not known"
        fits = estimate.high <= limits.max_latency_ms
        return estimate.ms, estimate.line, "" if fits else f"upper estimate over {limits.max_latency_ms:g} ms"
    basis = profile.latency
    if (
        basis is not None
        and basis.preset == config.name
        and basis.resolution == size
        and any(t.key == basis.target for t in targets)
    ):
        published = basis.picture_ms(width, config.steps)
        if published is None:
            return None, "no published latency at this width", "latency not known"
        over = budget is not None and not published <= budget.value
        said = f"{published:.0f} ms a picture (published steps and decoder)"
        return published, said, f"latency over {budget}" if over else ""
    estimate = _estimate(width, targets, limits)
    if estimate is None:
        return None, "no latency figure for this model and size on this device", ""
    over = budget is not None and not estimate.ms <= budget.value
    return estimate.ms, estimate.line, f"latency over {budget}" if over else ""


def _estimate(width: str, targets: Sequence[TargetPlan], limits: _Limits) -> LatencyEstimate | None:
    """Of the first target that there is a basis for."""
    if limits.estimator is None:
        return None
    return next((found for t in targets if (found := limits.estimator(width, t.key)) is not None), None)


def estimate_memory(
    config: ModelConfig, width: str, latent: tuple[int, int, int], size: tuple[int, int], weight_bytes: float
) -> int:
    """Estimated peak bytes: all weights, and the largest activations."""
    import torch

    from snapgen_deploy.models import DiT, TextEncoder, TinyDecoder

    with torch.device("meta"):
        parts = [DiT(config.student, width)]
        parameters = sum(p.numel() for p in parts[0].parameters())
        if config.decoder is not None:
            parameters += sum(p.numel() for p in TinyDecoder(config.decoder).parameters())
        if config.text_encoder is not None:
            parameters += sum(p.numel() for p in TextEncoder(config.text_encoder).parameters())
    return round(parameters * weight_bytes) + activation_bytes(config, width, latent, size)


def activation_bytes(config: ModelConfig, width: str, latent: tuple[int, int, int], size: tuple[int, int]) -> int:
    """Estimated bytes of the larger of the student's and the decoder's largest activations, 4 bytes an element.

    Student: the residual stream, the FFN's inner map, and one head group's scores against the compressed keys; N tokens,
    hidden width D: N * (2 D + 4 D) + g * N * N/4 elements. Decoder: three maps of its widest block at full resolution.
    """
    rows, cols = config.student.grid(latent[1], latent[2])
    tokens, hidden = rows * cols, config.student.hidden_at(width)
    student = tokens * hidden * (2 + max(config.student.ffn_ratios)) + config.student.kv_group * tokens * (tokens // 4)
    decoder = 3 * config.decoder.channels[-1] * config.decoder.expand * size[0] * size[1] if config.decoder else 0
    return 4 * max(student, decoder)


def _obstacle(target: ProfileTarget, *, several: bool) -> str | None:
    """Why a target cannot be exported here, or not at several picture sizes; None where it can."""
    spec = spec_of(target.target, target.variant)
    if reason := missing_extra(target.key):
        return reason
    return f"it holds one picture size ({spec.one_size})" if several and spec.one_size else None


def _targets(profile: Profile, wanted: Sequence[str], *, several: bool) -> tuple[list[ProfileTarget], list[str]]:
    """The profile's targets, or those asked for, and a line for each of the profile's that was left out.

    A bare name takes the profile's variant, else the target's first. BadInput where a target was asked for that is not
    known, whose extra is missing, or that cannot hold several picture sizes.
    """
    if not wanted:
        obstacles = {t.key: why for t in profile.targets if (why := _obstacle(t, several=several))}
        lines = [f"{key} left out: {why}" for key, why in obstacles.items()]
        return [t for t in profile.targets if t.key not in obstacles], lines
    found = []
    for text in dict.fromkeys(wanted):
        name, _, variant = text.partition(":")
        if name not in TARGETS:
            names = list(dict.fromkeys(key.partition(":")[0] for key in TARGETS))
            near = difflib.get_close_matches(name, names, n=1) or names
            raise BadInput(f"unknown target '{name}': did you mean {' or '.join(near)}?")
        variants = variants_of(name)
        if variant and variant not in variants:
            raise BadInput(f"target {name} has no variant '{variant}': expected one of {', '.join(variants) or 'none'}")
        offered = (*profile.targets, *(o.target for o in profile.offers))
        ours = [t for t in offered if t.key == text or (not variant and t.target == name)]
        ours.sort(key=lambda t: bool(t.variant) and t.key in TARGETS)  # a variant with a row of its own by its full name only
        variant = variant or next(iter(variants), "")
        spec = spec_of(name, variant)
        default = ProfileTarget(name, variant, spec.precisions[0], spec.layout)
        chosen = ours[0] if ours else default
        if why := _obstacle(chosen, several=several):
            raise BadInput(f"target {chosen.key} cannot be exported: {why}")
        found.append(chosen)
    return found, []


def _target(target: ProfileTarget, precision: str | None, form: str, profile: Profile) -> TargetPlan:
    spec = spec_of(target.target, target.variant)
    if precision is not None and precision not in spec.precisions:
        near = nearest(precision, spec.precisions)
        have = [key for key in target_keys() if precision in spec_of(*key.partition(":")[::2]).precisions]
        near = f"; choose --target {' or '.join(have)}, which {'has' if len(have) == 1 else 'have'} it" if have else near
        raise BadInput(f"target {target.key} has no precision '{precision}': it offers {', '.join(spec.precisions)}{near}")
    chosen = precision or target.precision
    own = target.limits if chosen == target.precision else ()
    if absent := [name for name in spec.from_figures if name not in profile.figures]:
        raise BadInput(f"target {target.key} needs the figure {absent[0]}, which the profile {profile.id} does not have")
    figures = tuple((name, f"{profile.figures[name].value:g}") for name in spec.from_figures)
    options = (*target.options, *figures)
    return TargetPlan(target.target, target.variant, chosen, target.layout, form, options, own_limits=own)
