"""The fidelity gate: do exported files of a precision still draw the pictures of the fp32 reference, over many prompts?

The reference draws every sample once (`draw_reference`, which keeps the pictures on disk). Each target's files then draw the
same prompts from the same noise (`measure_fidelity`). Compared are PSNR and SSIM of the final picture, the latent after every
step, and the points of a scorer if there is one.

A scorer, named `file.py:function` or `module:function`, takes prompts and pictures (H, W, 3), uint8, and returns (points,
points possible) for each picture. The detector of the embedded checkpoint is one. It is not part of the installed package: it
is used if the package runs from a source tree, or named with `--scorer`. The working directory is never searched, since a file
that is there by chance must not decide a gate.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from snapgen_deploy.check.gates import Gate, SavedTarget, at_least, at_most, psnr, relative_error
from snapgen_deploy.check.similarity import ssim
from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.drawing.pipeline import Pipeline, StudentTrace, in_calls, noise_for, to_bytes
from snapgen_deploy.drawing.prompts import Sample, is_embedded
from snapgen_deploy.drawing.reference import reference_runners, schedule_of
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.precisions import Limits
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models.noise import TORCH
from snapgen_deploy.models.schedule import EULER, Schedule
from snapgen_deploy.plan.plan import TargetPlan
from snapgen_deploy.quantise.trajectories import Recording, Trajectories, load_trajectories
from snapgen_deploy.system.functions import function_of
from snapgen_deploy.system.progress import OnProgress, ignore_progress
from snapgen_deploy.system.quantiles import bootstrap_interval
from snapgen_deploy.system.quiet import first_line
from snapgen_deploy.system.source import package_root

Scorer = Callable[[Sequence[str], Sequence[np.ndarray]], Sequence[tuple[float, float]]]
FIDELITY_PICTURES = 100  # default number of pictures
_PICTURES, _SCORES = "pictures.npy", "scores.json"
RESAMPLES = 2000  # draws of the bootstrap over prompts
DETECTOR = "examples.shapes.score:right_and_counted"  # the scorer of the embedded checkpoint
NO_SCORER = "no scorer is known for this checkpoint; name one with --scorer"


@dataclass(frozen=True)
class Fidelity:
    """What the fidelity gate draws, and which targets it judges."""

    samples: tuple[Sample, ...]
    scorer: str | None  # `file.py:function` or `module:function`
    unscored: str = NO_SCORER  # why there is no scorer, if `scorer` is None
    every: bool = False  # also judge targets at their own default precision, which differs from the reference by rounding only

    def judges(self, target: TargetPlan) -> bool:
        """Whether the target's files are compared with the reference over all samples."""
        return self.every or not target.exact


@dataclass(frozen=True)
class Score:
    """Share of a scorer's points, with 95 % intervals (percentile bootstrap over prompts, 2000 draws).

    Pictures of one prompt are resampled together, since their points are correlated.
    """

    share: float
    interval: tuple[float, float]
    reference: float  # share for the fp32 reference's pictures
    difference: tuple[float, float]  # interval of share - reference, paired by prompt
    prompts: int  # number of distinct prompts


@dataclass(frozen=True)
class Measured:
    """One target's pictures compared with the reference's."""

    pictures: int
    psnr: float  # lowest, dB
    mean_psnr: float  # dB
    ssim: float | None  # mean; None without a decoder, since there are no pictures then
    latent_error: tuple[float, ...]  # relative error of the latent after each step, mean over pictures
    score: Score | None

    def as_dict(self) -> dict[str, Any]:
        """For the manifest; values have three significant digits, so that a rerun writes the same."""
        data: dict[str, Any] = _rounded(asdict(self))
        return data


def draw_reference(recording: Recording, scorer: str | None, on_progress: OnProgress = ignore_progress) -> None:
    """Draw the samples with the fp32 reference and write trajectories, pictures and scores to the recording's folder.

    Runs in a child process.

    Raises:
        BadInput: if the scorer cannot be loaded, fails or returns something unusable.
    """
    samples, folder, opened = recording.samples, recording.folder, recording.checkpoint.open()
    trajectories = recording.run(opened, on_progress)
    runners = reference_runners(opened, recording.width, ("decode",))
    pipeline = Pipeline(components_of(opened.config), runners, schedule_of(opened.config), recording.latent)
    if not pipeline.decodes:
        return
    drawn = (pipeline.decode(row[None].copy())[0] for row in trajectories.arrays["drawn"])
    file = None
    for number, picture in enumerate(drawn):
        if file is None:
            file = np.lib.format.open_memmap(folder / _PICTURES, "w+", np.float32, (len(samples), *picture.shape))
        file[number] = picture
    if scorer is not None and file is not None:
        (folder / _SCORES).write_text(json.dumps(points_of(scorer, samples, [to_bytes(p[None]) for p in file])))


def _begun_with(reference: Trajectories, schedule: Schedule, latent: tuple[int, int, int], rows: Sequence[int]) -> np.ndarray:
    """The noise of some of the samples, as the reference drew it."""
    if schedule.sampler == EULER:
        return np.array(reference.arrays["latents"][rows][:, 0])
    return np.concatenate([noise_for(reference.samples[i].seed, latent, TORCH, schedule.fresh) for i in rows])


def measure_fidelity(
    saved: SavedTarget, folder: Path, scorer: str | None, on_progress: OnProgress = ignore_progress
) -> Measured:
    """Draw the samples of `draw_reference` with a target's saved files and compare. Runs in a child process.

    Args:
        saved: The target's files.
        folder: Where `draw_reference` wrote its pictures.
        scorer: `file.py:function` or `module:function`, or None.
        on_progress: Called with the number of pictures drawn, and their total.

    Raises:
        BadInput: if the folder cannot be read, or the scorer cannot be used.
    """
    target, _ = target_of(saved.key)
    runners = {role: target.open(a.path, threads=saved.threads) for role, a in saved.artifacts.items()}
    reference = load_trajectories(folder, saved.config)
    pictures = np.load(folder / _PICTURES, mmap_mode="r") if (folder / _PICTURES).is_file() else None
    shape = reference.arrays["latents"].shape[2:]
    pipeline = Pipeline(components_of(saved.config), runners, saved.schedule, (shape[0], shape[1], shape[2]))
    decibels, similar, drawn = [], [], []
    errors: list[list[float]] = []
    total = len(reference.samples)
    for rows in in_calls(total, saved.batch):
        trace, noise = StudentTrace(), _begun_with(reference, saved.schedule, pipeline.latent, rows)
        latents = pipeline.denoise(noise, pipeline.condition(*reference.conditions(rows, runners)), trace)
        decoded = None if pictures is None or not pipeline.decodes else pipeline.decode(latents)
        for row, i in enumerate(rows[: total - len(errors)]):  # without those that fill the last call up
            expected = [*reference.arrays["latents"][i][1:], reference.arrays["drawn"][i]]
            steps = [*trace.latents[1:], latents]
            errors.append([relative_error(got[row], want) for got, want in zip(steps, expected, strict=True)])
            on_progress(len(errors), total)
            if pictures is None or decoded is None:
                decibels.append(psnr(latents[row] / 4, reference.arrays["drawn"][i] / 4))  # standard normal: 4 covers them
                continue
            picture, expected_picture = decoded[row : row + 1], np.asarray(pictures[i][None])
            decibels.append(psnr(picture, expected_picture))
            similar.append(ssim(picture, expected_picture))
            if scorer is not None:
                drawn.append(to_bytes(np.nan_to_num(picture)))
    mean_errors = tuple(float(e) for e in np.mean(np.array(errors), axis=0))
    score = _scored(reference, folder, scorer, drawn) if drawn and scorer is not None else None
    likeness = float(np.mean(similar)) if similar else None
    return Measured(len(decibels), float(np.min(decibels)), float(np.mean(decibels)), likeness, mean_errors, score)


def fidelity_gates(key: str, measured: Measured, limits: Limits, unscored: str = NO_SCORER) -> tuple[Gate, ...]:
    """The fidelity gates of one target; `unscored` is the reason to give if there are no points."""
    count = f"{measured.pictures} pictures"
    worst = float(np.max(measured.latent_error))
    steps = ", ".join(f"{e:.2g}" for e in measured.latent_error)
    gates = [
        at_least(key, "pipeline", "fidelity_psnr", measured.psnr, limits.least_psnr, f"dB, least of {count}"),
        at_least(key, "pipeline", "fidelity_mean_psnr", measured.mean_psnr, limits.mean_psnr, f"dB, mean of {count}"),
        at_least(key, "pipeline", "fidelity_ssim", measured.ssim, limits.ssim, f"mean of {count}")
        if measured.ssim is not None
        else Gate(key, "pipeline", "fidelity_ssim", None, limits.ssim, "not_run", "no decoder, no pictures"),
        at_most(key, "pipeline", "fidelity_latent_error", worst, limits.latent_error, f"relative, after each step: {steps}"),
    ]
    name, least = "fidelity_score_change", 0.0 - limits.score_loss  # no -0
    if (score := measured.score) is None or score.reference <= limits.score_loss:
        why = unscored if score is None else f"the reference itself has {100 * score.reference:.1f} % of the points"
        return (*gates, Gate(key, "pipeline", name, None, least, "not_run", f"image measures only: {why}"))
    low, high = (100 * v for v in score.interval)
    shares = f"{100 * score.share:.1f} % ({low:.1f} to {high:.1f}), reference {100 * score.reference:.1f} %"
    detail = f"upper end of the change's interval; {shares}, {score.prompts} different prompts"
    return (*gates, at_least(key, "pipeline", name, score.difference[1], least, detail))


def scorer_of(
    checkpoint: Checkpoint, wanted: str | None, samples: Sequence[Sample], resolution: tuple[int, int]
) -> tuple[str | None, str]:
    """Choose the scorer: the wanted one, else the detector if it knows the checkpoint, the prompts and the picture size.

    Either is first tried on blank pictures, since drawing the reference may take hours.

    Returns:
        The scorer's name and "", or None and the reason why there is none.

    Raises:
        BadInput: if the wanted scorer cannot be imported, fails or returns something unusable.
    """
    blank = np.zeros((*resolution, 3), np.uint8)
    if wanted is not None:
        points_of(wanted, samples[:1], [blank])
        return wanted, ""
    if not ((_source_tree() / "examples" / "shapes" / "score.py").is_file() and is_embedded(checkpoint)):
        return None, NO_SCORER
    if resolution != checkpoint.config.resolution:
        height, width = checkpoint.config.resolution
        return None, f"the checkpoint's detector knows pictures of {height}x{width} only; name a scorer with --scorer"
    try:
        points_of(DETECTOR, samples, [blank] * len(samples))
    except BadInput as error:
        why = error.__cause__ or error
        return None, f"the checkpoint's detector does not read these prompts ({why}); name a scorer with --scorer"
    return DETECTOR, ""


def load_scorer(name: str) -> Scorer:
    """Import the function `file.py:function`, or `module:function` of an installed module.

    Raises:
        BadInput: if the name is not of this form, cannot be imported, or is not a function.
    """
    load = _detector if name == DETECTOR else None
    scorer: Scorer = function_of(name, "--scorer", "a function of prompts and pictures", load)
    return scorer


def _detector(module: str) -> ModuleType:
    with _tree_first():
        return importlib.import_module(module)


@contextmanager
def _tree_first() -> Iterator[None]:
    """Search the source tree first: other packages may be named `examples` too."""
    tree, before = str(_source_tree()), sys.path
    sys.path = [tree, *before]
    try:
        yield
    finally:
        sys.path = before


def points_of(scorer: str, samples: Sequence[Sample], pictures: Sequence[np.ndarray]) -> list[list[float]]:
    """Run a scorer: points and points possible for each picture.

    Raises:
        BadInput: if the scorer cannot be loaded, raises an exception, or does not return one pair of finite numbers, the
            second not negative, for every picture.
    """
    score = load_scorer(scorer)
    try:
        found = list(score([s.prompt for s in samples], pictures))
    except Exception as error:  # whatever a user's function raises
        raise BadInput(f"--scorer {scorer}: {type(error).__name__}: {first_line(error)}") from error
    try:
        points = [[float(got), float(possible)] for got, possible in found]
    except (TypeError, ValueError) as error:
        raise BadInput(f"--scorer {scorer}: expected (points, points possible) for every picture ({error})") from None
    if len(points) != len(pictures) or not np.isfinite(points).all():
        raise BadInput(
            f"--scorer {scorer}: got {len(points)} finite pairs at most for {len(pictures)} pictures, expected one each"
        )
    if any(possible < 0 for _, possible in points):
        raise BadInput(f"--scorer {scorer}: got points possible below 0, expected 0 or more for every picture")
    return points


def compare_points(prompts: Sequence[str], got: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> Score:
    """Compute shares of points and their intervals.

    Args:
        prompts: The prompt of each picture; prompts may repeat.
        got: (points, points possible) of each picture drawn by the exported files.
        reference: The same for the pictures drawn by the reference.
    """
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    ours, theirs = np.zeros((2, len(number), 2))
    np.add.at(ours, [number[p] for p in prompts], np.array(got, float))
    np.add.at(theirs, [number[p] for p in prompts], np.array(reference, float))
    draws = np.random.default_rng(0).integers(len(ours), size=(RESAMPLES, len(ours)))
    shares, bases = (_share(r[draws].sum(1)) for r in (ours, theirs))
    changes = shares - bases
    share, base = (float(_share(r.sum(0))) for r in (ours, theirs))
    return Score(share, bootstrap_interval(shares), base, bootstrap_interval(changes), len(number))


def _share(points: np.ndarray) -> np.ndarray:
    """Points (..., 2) -> points divided by points possible; 0 if none were possible."""
    possible = points[..., 1]
    share: np.ndarray = points[..., 0] / np.where(possible > 0, possible, np.inf)
    return share


def _scored(reference: Trajectories, folder: Path, scorer: str, drawn: Sequence[np.ndarray]) -> Score:
    prompts, expected = [s.prompt for s in reference.samples], json.loads((folder / _SCORES).read_text())
    return compare_points(prompts, points_of(scorer, reference.samples, drawn), expected)


def _source_tree() -> Path:
    return package_root().parent


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.3g}") if np.isfinite(value) else None
    return value
