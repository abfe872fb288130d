"""Gates: an exported file passes if its results, computed from disk in a fresh process, agree with the reference.

A gate that cannot run has the verdict `not_run` and a reason; it never counts as passed. Comparisons are written
`if not value <= limit`, so that NaN fails.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from snapgen_deploy.drawing.pipeline import Pipeline, counted, in_calls, to_bytes
from snapgen_deploy.drawing.reference import TUNED, VELOCITIES, ReferenceVectors
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Arrays, Artifact, Description, Headroom, Role, Runner
from snapgen_deploy.export.precisions import PRECISIONS, Limits
from snapgen_deploy.export.registry import spec_of, target_of
from snapgen_deploy.export.spec import OneDelegate, OneUnit, TargetSpec
from snapgen_deploy.families.component import LATENT, PICTURE, ComponentSpec
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.golden.vectors import PIPELINE, GoldenPicture, GoldenVectors
from snapgen_deploy.machines.registry import machine_of, obstacle
from snapgen_deploy.models import ModelConfig, Schedule
from snapgen_deploy.system.progress import OnProgress, ignore_progress

Verdict = Literal["passed", "failed", "not_run"]

PSNR, MEDIAN_PSNR = "psnr", "median_psnr"  # of the pictures of the test vectors
GOLDEN_ERROR, GOLDEN_TOKENS = "golden_error", "golden_tokens"  # of golden vectors
GOLDEN_PSNR, GOLDEN_MEDIAN_PSNR = "golden_psnr", "golden_median_psnr"  # of the pictures of golden vectors
OF_GOLDEN = (GOLDEN_ERROR, GOLDEN_TOKENS, GOLDEN_PSNR, GOLDEN_MEDIAN_PSNR)
PSNR_CAP = 200.0  # dB; the value for equal pictures, since JSON has no infinity


@dataclass(frozen=True)
class Gate:
    """The result of one check of one target: `value` compared with `limit`."""

    target: str
    component: str  # a role, or "pipeline" for the whole picture
    name: str
    value: float | None
    limit: float
    verdict: Verdict
    detail: str = ""  # unit or reason
    size: str = ""  # picture size in a bundle of several
    on: str = ""  # the machine that ran the files; "" for this one

    @property
    def where(self) -> str:
        """The component, and the picture size if the bundle has several."""
        return f"{self.component} {self.size}".strip()

    @property
    def what(self) -> str:
        """The target, and the machine if it is another one."""
        return f"{self.target} on {self.on}" if self.on else self.target

    @property
    def key(self) -> tuple[str, ...]:
        """What tells the gates of a bundle apart."""
        return self.target, self.component, self.name, self.size, self.on

    def as_dict(self) -> dict[str, Any]:
        """For the manifest, without what is empty. Values have three significant digits, so that a rerun writes the same."""
        data = asdict(self)
        for name in ("size", "on"):
            if not data[name]:
                del data[name]
        if self.value is not None:
            data["value"] = float(f"{self.value:.3g}") if math.isfinite(self.value) else None
        return data


def at_most(target: str, component: str, name: str, value: float, limit: float, detail: str = "") -> Gate:
    """A gate that passes if value <= limit; NaN fails."""
    return Gate(target, component, name, value, limit, "failed" if not value <= limit else "passed", detail)


def at_least(target: str, component: str, name: str, value: float, limit: float, detail: str = "") -> Gate:
    """A gate that passes if value >= limit; NaN fails."""
    return Gate(target, component, name, value, limit, "failed" if not value >= limit else "passed", detail)


def limit_text(name: str, limit: float) -> str:
    """A gate's limit with the comparison that must hold.

    >>> limit_text("psnr", 40), limit_text("relative_error", 0.05)
    ('≥ 40 dB', '≤ 0.05')
    """
    sign = "≥" if name.endswith(("psnr", "ssim", "score_change")) else "≤"
    return f"{sign} {limit:g}" + (" dB" if name.endswith("psnr") else "")


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """||got - expected|| / ||expected||, Euclidean over all elements, in double precision. NaN if the shapes differ.

    >>> relative_error(np.array([3.0, 4.5]), np.array([3.0, 4.0]))
    0.1
    """
    if got.shape != expected.shape:
        return math.nan
    difference = np.linalg.norm((got.astype(np.float64) - expected.astype(np.float64)).ravel())
    scale = float(np.linalg.norm(expected.astype(np.float64).ravel()))
    return float(difference) / max(scale, 1e-12)


def psnr(got: np.ndarray, expected: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two pictures in -1 ... 1, both clamped: 10 log10(2^2 / MSE).

    At most `PSNR_CAP`. NaN, which passes no gate, if any value is not finite: once clamped, infinity would count as white.

    >>> round(psnr(np.zeros((1, 3, 8, 8)), np.full((1, 3, 8, 8), 0.2)), 3)
    20.0
    """
    if not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return math.nan
    mse = float(np.mean((np.clip(got, -1, 1).astype(np.float64) - np.clip(expected, -1, 1).astype(np.float64)) ** 2))
    if mse == 0:
        return PSNR_CAP
    return min(10 * math.log10(4 / mse), PSNR_CAP)


def picture_gates(target: str, names: tuple[str, str], decibels: np.ndarray, limits: tuple[float, float]) -> tuple[Gate, ...]:
    """The gates of some pictures: their least PSNR, and their lower median.

    Rounding turns a picture now and then into another one, which only the median forgives. Of one or two pictures the lower
    median is the least.

    Args:
        target: The target that drew them.
        names: Of both gates.
        decibels: PSNR of each picture in dB; one that is NaN fails both.
        limits: In dB, of both gates.
    """
    found = float(np.min(decibels)), float(np.quantile(decibels, 0.5, method="lower"))
    return tuple(
        at_least(target, PIPELINE, name, value, limit, f"dB, {kind} of {len(decibels)} pictures")
        for name, value, limit, kind in zip(names, found, limits, ("least", "lower median"), strict=True)
    )


@dataclass(frozen=True)
class Checked:
    """The gates of one target, the pictures (H, W, 3) that its files drew, one per prompt, and the PSNR of each in dB."""

    gates: tuple[Gate, ...]
    pictures: tuple[np.ndarray, ...]
    decibels: tuple[float, ...]


@dataclass(frozen=True)
class SavedTarget:
    """The saved files of one target at one picture size, and what a process needs to run them."""

    key: str
    precision: str
    limits: Limits
    artifacts: Mapping[Role, Artifact]
    config: ModelConfig
    schedule: Schedule
    threads: int
    batch: int = 1  # pictures that a call draws
    golden: GoldenVectors | None = None  # of this picture size
    on: str = ""  # the machine that runs the files, as in `snapgen_deploy.machines`; "" for this one


def check_sizes(
    saved: Mapping[str, SavedTarget], vectors: Mapping[str, ReferenceVectors], on_progress: OnProgress = ignore_progress
) -> dict[str, Checked]:
    """Run `check_target` for every picture size, one after the other.

    With several sizes, gates name theirs. Components that do not depend on the size, such as text encoders, are checked once.

    Args:
        saved: Files by picture size, the default size first.
        vectors: Test vectors by picture size.
        on_progress: Called with the number of finished calls of the student at the current size, and their total.
    """
    found: dict[str, Checked] = {}
    for size, files in saved.items():
        checked = check_target(files, vectors[size], on_progress)
        if len(saved) > 1:
            shared = [spec.name for spec in components_of(files.config) if not spec.sized]
            kept = [g for g in checked.gates if not found or g.component not in shared]
            checked = replace(checked, gates=tuple(replace(g, size="" if g.component in shared else size) for g in kept))
        found[size] = checked
    return found


def check_target(saved: SavedTarget, vectors: ReferenceVectors, on_progress: OnProgress = ignore_progress) -> Checked:
    """Run every gate of one target: its saved files on the test vectors, and where their operators are placed.

    Another machine runs the files alone: where this one's runtime places operators says nothing of it.
    """
    machine = machine_of(saved.on) if saved.on else None
    if machine is None:
        target, variant = target_of(saved.key)
        reason = target.unavailable(variant)
        placed = _placement(saved, reason)  # before the files are opened: both would be in memory
        opened = {
            role: target.open(a.path, threads=saved.threads, entry=a.entry) for role, a in saved.artifacts.items() if not reason
        }
    else:
        reason, placed = obstacle(machine, spec_of(saved.key)), []
        try:
            opened = {
                role: machine.open(a.path, threads=saved.threads, entry=a.entry)
                for role, a in saved.artifacts.items()
                if not reason
            }
        except BadInput as error:  # its processor lacks what a file needs
            why = _refusal(str(error), spec_of(saved.key), saved.precision)
            return Checked(tuple(replace(g, verdict="failed", on=saved.on) for g in _idle_gates(saved, why)), (), ())
    if reason is not None:
        checked = Checked(_idle_gates(saved, reason), (), ())
    else:
        checked = _run_gates(saved, opened, vectors, on_progress)
    return replace(checked, gates=tuple(replace(gate, on=saved.on) for gate in (*checked.gates, *placed)))


def _refusal(said: str, spec: TargetSpec, precision: str) -> str:
    """Why a machine did not load a file, with what the target's record says that the precision needs.

    >>> _refusal("a.pte cannot be loaded", spec_of("executorch:xnnpack"), "fp16")
    'a.pte cannot be loaded; fp16 needs cores with fp16 arithmetic, take another precision for others'
    """
    needed = spec.arithmetic.get(precision)
    return f"{said}; {precision} needs cores with {needed} arithmetic, take another precision for others" if needed else said


def _placement(saved: SavedTarget, reason: str | None) -> list[Gate]:
    """The gates for where operators run, if the target's record has a rule."""
    if spec_of(saved.key).placement is None:
        return []
    target, _ = target_of(saved.key)
    descriptions = {role: target.describe(a.path, a.entry) for role, a in saved.artifacts.items()}
    return placement_gates(saved.key, descriptions, reason, [s.name for s in components_of(saved.config) if not s.in_delegate])


def _idle_gates(saved: SavedTarget, reason: str) -> tuple[Gate, ...]:
    """The gates of files that cannot run."""
    limits = saved.limits
    skipped = [Gate(saved.key, role, "relative_error", None, limits.error, "not_run", reason) for role in saved.artifacts]
    of_pictures = {PSNR: limits.psnr, MEDIAN_PSNR: limits.median_psnr}
    skipped += [Gate(saved.key, PIPELINE, name, None, limit, "not_run", reason) for name, limit in of_pictures.items()]
    return (*skipped, *_idle_golden_gates(saved, reason))


def _run_gates(
    saved: SavedTarget, opened: Mapping[Role, Runner], vectors: ReferenceVectors, on_progress: OnProgress
) -> Checked:
    """The gates of opened files, and the pictures that they draw."""
    key, precision, limits = saved.key, saved.precision, saved.limits
    config, schedule = saved.config, saved.schedule
    runners = dict(opened)
    calls = len(in_calls(len(vectors.prompts), saved.batch)) * (len(schedule.sigmas) - 1)  # per comparison
    components = components_of(config)
    student = components.denoiser
    runners[student.name] = counted(runners[student.name], calls * (3 if precision == "mixed" else 2), on_progress)
    gates = [
        at_most(
            key,
            role,
            "relative_error",
            _component_error(components[role], runner, config, vectors, saved.batch),
            error_limit(precision, components[role], limits),
            "largest over prompts and steps",
        )
        for role, runner in runners.items()
    ]
    if precision == "mixed":
        gates.append(_tuned_gate(key, runners[student.name], config, vectors, saved.batch))
    pictures, decibels = _draw(runners, config, schedule, vectors, saved.batch)
    gates += picture_gates(key, (PSNR, MEDIAN_PSNR), decibels, (limits.psnr, limits.median_psnr))
    gates += _golden_gates(saved, opened)
    if precision != "fp32":
        gates += [gate for role, runner in opened.items() if (gate := _headroom_gate(key, role, runner)) is not None]
    return Checked(tuple(gates), tuple(pictures), tuple(decibels.tolist()))


def error_limit(precision: str, spec: ComponentSpec, limits: Limits) -> float:
    """The limit for a component's relative error; with mixed precision, components that take no recipe are fp16."""
    return PRECISIONS["fp16"].limits.error if precision == "mixed" and not spec.takes_recipe else limits.error


def _golden_gates(saved: SavedTarget, runners: Mapping[Role, Runner]) -> list[Gate]:
    """The files on the calls and pictures of golden vectors, where there are such."""
    golden, components, gates = saved.golden, components_of(saved.config), list[Gate]()
    for role, cases in golden.cases.items() if golden is not None else ():
        spec = components[role]
        calls = cases.rows(spec.rows_in(saved.batch))
        worst = float(np.max([_worst_output(runners[role](inputs), expected) for inputs, expected in calls]))
        limit, count = _golden_limit(saved, role), f"largest over {len(cases)} calls"
        gates.append(at_most(saved.key, role, GOLDEN_ERROR, worst, limit, count))
    if golden is not None and golden.picture is not None:
        pipeline = Pipeline(components, runners, saved.schedule, golden.drawing.latent, batch=saved.batch)
        decibels = golden_decibels(pipeline, golden.picture)
        gates += picture_gates(saved.key, (GOLDEN_PSNR, GOLDEN_MEDIAN_PSNR), decibels, _golden_psnr_limits(saved))
    return gates


def _idle_golden_gates(saved: SavedTarget, reason: str) -> list[Gate]:
    """The same where the files cannot run here."""
    if saved.golden is None:
        return []
    limits = {(role, GOLDEN_ERROR): _golden_limit(saved, role) for role in saved.golden.cases}
    if saved.golden.picture is not None:
        names = ((PIPELINE, GOLDEN_PSNR), (PIPELINE, GOLDEN_MEDIAN_PSNR))
        limits |= dict(zip(names, _golden_psnr_limits(saved), strict=True))
    return [Gate(saved.key, part, name, None, limit, "not_run", reason) for (part, name), limit in limits.items()]


def _golden_limit(saved: SavedTarget, role: Role) -> float:
    """Largest error against golden vectors: the precision's own, and that of the arithmetic that made the vectors."""
    assert saved.golden is not None
    return error_limit(saved.precision, components_of(saved.config)[role], saved.limits) + saved.golden.error


def _golden_psnr_limits(saved: SavedTarget) -> tuple[float, float]:
    """Least and lower median PSNR in dB where the error of the files and that of the vectors add up."""
    assert saved.golden is not None
    return _added(saved.limits.psnr, saved.golden.psnr), _added(saved.limits.median_psnr, saved.golden.psnr)


def _added(*decibels: float) -> float:
    """The PSNR in dB of errors that add up."""
    return -20 * math.log10(sum(10 ** (-one / 20) for one in decibels))


def golden_latent(pipeline: Pipeline, whole: GoldenPicture, rows: Sequence[int]) -> np.ndarray:
    """The latents (n, C, h, w) of some golden pictures after the last step, drawn in one call from their noise and text."""
    return pipeline.denoise(whole.noise[list(rows)], pipeline.condition(*whole.conditions(rows)))


def golden_decibels(pipeline: Pipeline, whole: GoldenPicture) -> np.ndarray:
    """The PSNR in dB of each golden picture, drawn from its noise and text: the lesser of its latent's and its pixels'.

    NaN where neither can be compared.
    """
    found = np.full(len(whole), math.nan)
    for rows in in_calls(len(whole), pipeline.batch):
        latent = golden_latent(pipeline, whole, rows)
        if whole.latent is not None:
            _keep_least(found, rows, latent / 4, whole.latent[rows] / 4)  # latents are standard normal: 4 covers them
        if whole.picture is not None and pipeline.decodes:
            _keep_least(found, rows, pipeline.decode(latent), whole.picture[rows])
    return found


def _keep_least(found: np.ndarray, rows: Sequence[int], got: np.ndarray, expected: np.ndarray) -> None:
    """Lower the PSNRs of some pictures to those of a comparison. NaN stands for none so far; one that is NaN becomes -inf.

    A picture may be drawn in several rows, since the last call is filled up: its worst row counts. One that did not come keeps
    NaN, which fails.
    """
    for row, drawn, meant in zip(rows, got, expected, strict=False):
        found[row] = np.fmin(found[row], np.nan_to_num(psnr(drawn, meant), nan=-math.inf))


def golden_psnr(pipeline: Pipeline, whole: GoldenPicture) -> float:
    """The least PSNR in dB of golden pictures."""
    return float(np.min(golden_decibels(pipeline, whole)))


def _tuned_gate(key: str, runner: Runner, config: ModelConfig, vectors: ReferenceVectors, batch: int) -> Gate:
    """Compares the file with the tuned network, to fp16 rounding: its palettes hold the tuned network's weights."""
    spec = components_of(config).denoiser
    tuned = replace(vectors, arrays={**vectors.arrays, VELOCITIES: vectors.arrays[TUNED]})
    error = _component_error(spec, runner, config, tuned, batch)
    return at_most(key, spec.name, "error_to_tuned", error, PRECISIONS["fp16"].limits.error, "largest over prompts and steps")


def _component_error(spec: ComponentSpec, runner: Runner, config: ModelConfig, vectors: ReferenceVectors, batch: int) -> float:
    """Largest relative error of a component over all test vectors, each with the reference's inputs."""
    errors = [
        _worst_output(runner(inputs), expected)
        for rows in in_calls(len(vectors.prompts), spec.pictures_in(batch))
        for inputs, expected in vectors.cases(spec, config, rows)
    ]
    # Python's max() may skip a NaN, depending on its position; numpy's does not.
    return float(np.max(errors)) if errors else math.nan


def _worst_output(got: Arrays, expected: Arrays) -> float:
    """The largest relative error of a row of any output."""
    return float(np.max([_worst_row(got[name], value) for name, value in expected.items()]))


def _worst_row(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest relative error of a row: a wrong picture counts as much among many as alone."""
    return (
        float(np.max([relative_error(*row) for row in zip(got, expected, strict=True)]))
        if len(got) == len(expected)
        else math.nan
    )


def _draw(
    runners: Mapping[Role, Runner], config: ModelConfig, schedule: Schedule, vectors: ReferenceVectors, batch: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Draw every prompt with the saved files alone. Returns also the PSNR of each (without a decoder, that of the latents)."""
    a = vectors.arrays
    shape = a[LATENT].shape[1:]
    pipeline = Pipeline(components_of(config), runners, schedule, (shape[0], shape[1], shape[2]))
    pictures: list[np.ndarray] = []
    decibels = np.full(len(vectors.prompts), math.nan)
    for rows in in_calls(len(vectors.prompts), batch):
        latents = pipeline.denoise(a["noise"][rows], pipeline.condition(*vectors.conditions(rows, config, runners)))
        if not pipeline.decodes:
            _keep_least(decibels, rows, latents / 4, a[LATENT][rows] / 4)  # latents are standard normal: 4 covers them
            continue
        drawn = pipeline.decode(latents)
        _keep_least(decibels, rows, drawn, a[PICTURE][rows])
        pictures += [to_bytes(np.nan_to_num(picture[None])) for picture in drawn]
    return pictures[: len(vectors.prompts)], decibels


def _headroom_gate(key: str, role: Role, runner: Runner) -> Gate | None:
    """A gate for the largest value inside a low-precision network over all runs so far, if its runtime records it.

    The gate is not run if only another runner of the target records it: Core ML itself shows no intermediate values.
    """
    if reason := getattr(runner, "unrecorded", ""):
        return Gate(key, role, "largest_value", None, float(np.finfo(np.float16).max), "not_run", reason)
    measure = getattr(runner, "headroom", None)
    headroom: Headroom | None = measure() if measure is not None else None
    if headroom is None:
        return None
    return at_most(key, role, "largest_value", headroom.largest, headroom.limit, "; ".join(headroom.tightest))


def placement_gates(
    key: str, descriptions: Mapping[Role, Description], reason: str | None = None, beside: Collection[Role] = ()
) -> list[Gate]:
    """Gates for where operators run, by the rule in the target's spec.

    `OneUnit`: every node runs on one unit, as the compiler placed it and the runtime accepted it. The gate is not run if the
    file could not be opened. `OneDelegate`: no operators outside the delegate, where slow portable kernels would run them,
    except dtype conversions at the ports, which are allowed around a single delegate.

    Args:
        key: The target.
        descriptions: What was read back from each component's file.
        reason: Why the target cannot run here, or None.
        beside: Components that may have operators outside the delegate.
    """
    rule, gates = spec_of(key).placement, []
    for role, description in descriptions.items():
        if isinstance(rule, OneUnit):
            if reason is not None:
                gates.append(Gate(key, role, rule.gate, None, 0.0, "not_run", reason))
                continue
            elsewhere = {unit: count for unit, count in description.placement.items() if unit != rule.unit}
            gates.append(at_most(key, role, rule.gate, float(sum(elsewhere.values())), 0.0, ", ".join(elsewhere)))
        elif isinstance(rule, OneDelegate) and role not in beside:
            left = {name: count for name, count in description.portable_ops.items() if name != rule.at_ports}
            gates.append(
                at_most(key, role, "operators_outside_delegate", float(sum(left.values())), 0.0, ", ".join(sorted(left)))
            )
            if rule.at_ports in description.portable_ops:
                parts = sum(count for where, count in description.placement.items() if where != "portable")
                gates.append(at_most(key, role, "delegates", float(parts), 1.0, "conversions of dtypes at the ports only"))
    return gates


def failed(gates: Sequence[Gate]) -> list[Gate]:
    """The gates that failed."""
    return [g for g in gates if g.verdict == "failed"]
