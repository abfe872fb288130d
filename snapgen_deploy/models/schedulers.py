"""The few-step schedules of schedulers of `diffusers`, from their scheduler_config.json; the library is not imported for it.

Every scheduler that is taken changes the latent by a linear rule with coefficients for each step. The latent is kept as the
network reads it, so that what a scheduler does to its input is in the coefficients, too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.config import LEAST_SHIFT, Positive, PositiveInt
from snapgen_deploy.models.diffusers_classes import CLASS, class_named, fixed_problems
from snapgen_deploy.models.schedule import LINEAR, Schedule, StepCoefficients
from snapgen_deploy.system.documents import in_one_line
from snapgen_deploy.system.typed import read_as

SCM = "SCMScheduler"
FLOW = "FlowMatchEulerDiscreteScheduler"
_FIRST_ANGLE, _SECOND_ANGLE = 1.5708, 1.3  # of SANA-Sprint's pipeline; the second one where there are two steps
_LARGEST_TRAINED = 100_000
_Trained = Annotated[int, Field(strict=True, ge=2, le=_LARGEST_TRAINED)]
_Prediction = Literal["epsilon", "v_prediction", "sample"]
_MOST_MU = 100.0  # beyond it the shift is none that is taken
_Mu = Annotated[float, Field(ge=-_MOST_MU, le=_MOST_MU)]


@dataclass(frozen=True)
class Spacing:
    """What a pipeline, and not the scheduler's configuration, decides."""

    steps: int
    even: bool = False  # noise levels before the shift are 1, 1 - 1/n, ..., as Flux's pipeline sets them
    timestep_scale: float = 1.0  # of the timestep that the network reads
    tokens: int = 0  # of the picture, for a shift that depends on them; 0: the pipeline tells none


class Scheduler(Protocol):
    """The settings of one class; those that are read as they are by no code here must have these values."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]]

    def schedule(self, spacing: Spacing, features: int) -> Schedule:
        """The schedule of a pipeline.

        Raises:
            ValueError: if the steps are too many; the message is one line.
        """


_OFF = (None, False)
_SIGMAS = dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), _OFF)


@dataclass(frozen=True)
class _Flow:
    """FlowMatchEulerDiscreteScheduler."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **_SIGMAS, "invert_sigmas": _OFF, "shift_terminal": (None, 0, 0.0), "stochastic_sampling": _OFF,
    }  # fmt: skip
    shift: Annotated[float, Field(ge=LEAST_SHIFT, le=1 / LEAST_SHIFT)] = 1.0
    num_train_timesteps: _Trained = 1000
    use_dynamic_shifting: bool | None = None
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    base_shift: _Mu = 0.5
    max_shift: _Mu = 1.15
    base_image_seq_len: PositiveInt = 256
    max_image_seq_len: PositiveInt = 4096

    def schedule(self, spacing: Spacing, features: int) -> Schedule:
        """Levels between those of the first and the last trained timestep, both shifted, and shifted once more.

        A shift that depends on the picture is applied once.
        """
        steps, trained = spacing.steps, self.num_train_timesteps
        shift = self._of_picture(spacing.tokens) if self.use_dynamic_shifting else self.shift
        first = 1.0 / trained if self.use_dynamic_shifting else _shifted(1.0 / trained, shift)
        levels = [_shifted(float(s), shift) for s in np.linspace(1.0, 1.0 / steps if spacing.even else first, steps)]
        timesteps = tuple(level * trained * spacing.timestep_scale for level in levels)
        usual = all(math.isclose(t, 1000.0 * s) for t, s in zip(timesteps, levels, strict=True))
        return Schedule((*levels, 0.0), shift, features, timesteps=() if usual else timesteps)

    def _of_picture(self, tokens: int) -> float:
        """The shift of a picture: `mu` grows linearly with its tokens, and is the shift, or its logarithm."""
        if not tokens:
            raise ValueError("got use_dynamic_shifting, and the pipelines of this student tell the scheduler no picture size")
        if self.base_image_seq_len == self.max_image_seq_len:
            raise ValueError("got base_image_seq_len equal to max_image_seq_len, which give no line")
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        mu = self.base_shift + slope * (tokens - self.base_image_seq_len)
        shift = math.exp(mu) if self.time_shift_type == "exponential" and abs(mu) < _MOST_MU else mu
        if not LEAST_SHIFT <= shift <= 1 / LEAST_SHIFT:
            raise ValueError(f"got a shift of {shift:g} for {tokens} tokens, expected {LEAST_SHIFT:g} to {1 / LEAST_SHIFT:g}")
        return shift


def _shifted(level: float, shift: float) -> float:
    return shift * level / (1.0 + (shift - 1.0) * level)


def angles_of(steps: int) -> tuple[float, ...]:
    """The angles of SANA-Sprint's pipeline, one more than there are steps."""
    if steps == 2:
        return _FIRST_ANGLE, _SECOND_ANGLE, 0.0
    return tuple(np.linspace(_FIRST_ANGLE, 0.0, steps + 1).tolist())


@dataclass(frozen=True)
class _SCM:
    """SCMScheduler, with what SANA-Sprint's pipeline does around it.

    With z = (1 - s) x0 + s noise of the level s = sin t / (sin t + cos t), the network's output is the velocity of z. A step
    takes the clean latent of it and draws new noise, as much as the next level has.
    """

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"prediction_type": ("trigflow",)}
    sigma_data: Positive = 0.5

    def schedule(self, spacing: Spacing, features: int) -> Schedule:
        """Even angles, of two steps those of the pipeline."""
        angles = angles_of(spacing.steps)
        levels = [math.sin(t) / (math.sin(t) + math.cos(t)) for t in angles[:-1]] + [0.0]
        norms = [math.hypot(s, 1.0 - s) for s in levels]
        coefficients = []
        for (angle, following), (level, _), norm, after in zip(
            itertools.pairwise(angles), itertools.pairwise(levels), norms, norms[1:], strict=False
        ):
            # x0 = cos t x - sin t F, F = ((1 - 2s) z + (1 - 2s + 2s^2) v) / norm, z = norm x; and z' = norm' x'
            kept = math.cos(angle) / norm - math.sin(angle) * (1 - 2 * level) / norm
            scale = -math.sin(angle) * (1 - 2 * level + 2 * level**2) / norm
            times = after * math.cos(following)
            coefficients.append(StepCoefficients(times * kept, times * scale, after * math.sin(following)))
        timesteps = tuple(levels[:-1])
        return Schedule(tuple(levels), 1.0, features, LINEAR, timesteps, tuple(coefficients), norms[0])


@dataclass(frozen=True)
class _Trained1000:
    """What schedulers with trained betas share."""

    num_train_timesteps: _Trained = 1000
    beta_start: Positive = 0.0001
    beta_end: Positive = 0.02
    beta_schedule: Literal["linear", "scaled_linear"] = "linear"
    prediction_type: _Prediction = "epsilon"

    @property
    def alphas(self) -> np.ndarray:
        """Products of 1 - beta up to each trained timestep; in single precision, as the library has them."""
        if self.beta_schedule == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, self.num_train_timesteps)
        else:
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps) ** 2
        products: np.ndarray = np.cumprod((1.0 - betas).astype(np.float64))
        return products


@dataclass(frozen=True)
class _LCM(_Trained1000):
    """LCMScheduler: a step takes the clean latent, blended with the noisy one, and adds new noise."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "trained_betas": _OFF, "clip_sample": _OFF, "thresholding": _OFF, "rescale_betas_zero_snr": _OFF,
    }  # fmt: skip
    beta_start: Positive = 0.00085
    beta_end: Positive = 0.012
    beta_schedule: Literal["linear", "scaled_linear"] = "scaled_linear"
    original_inference_steps: PositiveInt = 50
    timestep_scaling: Positive = 10.0

    def schedule(self, spacing: Spacing, features: int) -> Schedule:
        """Some of the timesteps that the student was distilled at."""
        n, original = spacing.steps, self.original_inference_steps
        if n > original or original > self.num_train_timesteps:
            raise ValueError(f"got {n} steps, expected at most the {original} of original_inference_steps")
        distilled = np.arange(1, original + 1) * (self.num_train_timesteps // original) - 1
        timesteps = distilled[::-1][np.floor(np.linspace(0, original, n, endpoint=False)).astype(int)]
        alphas, coefficients = self.alphas, []
        for i, t in enumerate(timesteps):
            skip, out = self._boundary(float(t))
            kept, scale = _clean(alphas[t], self.prediction_type)
            keep, times = out * kept + skip, out * scale
            after = float(alphas[timesteps[i + 1]]) if i + 1 < n else 1.0
            root = math.sqrt(after)
            coefficients.append(StepCoefficients(root * keep, root * times, math.sqrt(1.0 - after)))
        levels = (*(math.sqrt(1.0 - alphas[t]) for t in timesteps), 0.0)
        read = tuple(float(t) * spacing.timestep_scale for t in timesteps)
        return Schedule(levels, 1.0, features, LINEAR, read, tuple(coefficients))

    def _boundary(self, timestep: float) -> tuple[float, float]:
        """Weights of the noisy and of the clean latent; 0.5 is the library's deviation of the data."""
        scaled, data = timestep * self.timestep_scaling, 0.25
        return data / (scaled**2 + data), scaled / math.sqrt(scaled**2 + data)


def _clean(alpha: float, prediction: _Prediction) -> tuple[float, float]:
    """Coefficients of the latent and of the network's output in the clean latent."""
    signal, noise = math.sqrt(alpha), math.sqrt(1.0 - alpha)
    return {"epsilon": (1 / signal, -noise / signal), "v_prediction": (signal, -noise), "sample": (0.0, 1.0)}[prediction]


@dataclass(frozen=True)
class _Euler(_Trained1000):
    """EulerDiscreteScheduler, on the latent divided by sqrt(sigma^2 + 1), as the network reads it."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **_SIGMAS, "trained_betas": _OFF, "rescale_betas_zero_snr": _OFF, "interpolation_type": ("linear",),
        "timestep_type": ("discrete",), "final_sigmas_type": ("zero",), "sigma_min": _OFF, "sigma_max": _OFF,
    }  # fmt: skip
    timestep_spacing: Literal["linspace", "leading", "trailing"] = "linspace"
    steps_offset: Annotated[int, Field(strict=True, ge=0, le=_LARGEST_TRAINED)] = 0

    def schedule(self, spacing: Spacing, features: int) -> Schedule:
        """Timesteps over the whole range."""
        n, trained = spacing.steps, self.num_train_timesteps
        if n > trained:
            raise ValueError(f"got {n} steps, expected at most the {trained} of num_train_timesteps")
        timesteps = self._timesteps(n)
        if timesteps[0] > trained - 1:
            raise ValueError(f"got steps_offset {self.steps_offset}, which leads beyond num_train_timesteps {trained}")
        alphas = self.alphas
        all_sigmas = np.sqrt((1.0 - alphas) / alphas)
        sigmas = [*np.interp(timesteps, np.arange(trained), all_sigmas).tolist(), 0.0]
        size = [math.sqrt(s * s + 1.0) for s in sigmas]
        first = sigmas[0] if self.timestep_spacing != "leading" else size[0]
        coefficients = []
        for i, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
            kept, scale = _clean(1.0 / (sigma * sigma + 1.0), self.prediction_type)  # of x / size
            down, added = self._parts(sigma, following)
            # x' = x + (x - x0) / sigma * (down - sigma): x and x0 are size times, and once, the latent that the network reads
            share = down / sigma
            keep, times = share * size[i] + (1.0 - share) * kept, (1.0 - share) * scale
            coefficients.append(StepCoefficients(*(float(v) / size[i + 1] for v in (keep, times, added))))
        read = tuple(float(t) * spacing.timestep_scale for t in timesteps)
        return Schedule(tuple(sigmas), 1.0, features, LINEAR, read, tuple(coefficients), first / size[0])

    def _parts(self, sigma: float, following: float) -> tuple[float, float]:
        """The level that a step leads to, and the deviation of the noise that is added to it."""
        return following, 0.0

    def _timesteps(self, n: int) -> np.ndarray:
        trained = self.num_train_timesteps
        found: dict[str, np.ndarray] = {
            "linspace": np.linspace(0, trained - 1, n, dtype=np.float32)[::-1],
            "leading": (np.arange(n) * (trained // n))[::-1] + self.steps_offset,
            "trailing": np.arange(trained, 0, -trained / n).round()[:n] - 1,
        }
        return found[self.timestep_spacing].astype(np.float64)


@dataclass(frozen=True)
class _EulerAncestral(_Euler):
    """EulerAncestralDiscreteScheduler."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"trained_betas": _OFF, "rescale_betas_zero_snr": _OFF}

    def _parts(self, sigma: float, following: float) -> tuple[float, float]:
        added = math.sqrt(following**2 * (sigma**2 - following**2) / sigma**2)
        return math.sqrt(following**2 - added**2), added


SCHEDULERS: Mapping[str, type[Scheduler]] = MappingProxyType(
    {
        FLOW: _Flow,
        SCM: _SCM,
        "LCMScheduler": _LCM,
        "EulerDiscreteScheduler": _Euler,
        "EulerAncestralDiscreteScheduler": _EulerAncestral,
    }
)


def scheduler_of(config: Mapping[str, Any]) -> Scheduler:
    """The settings of a scheduler_config.json.

    Raises:
        BadInput: if its class is not one of `SCHEDULERS`, or a setting is of the wrong kind or not taken; in one line.
    """
    kind = class_named(config, SCHEDULERS, "scheduler: ")
    settings, problems = read_as(SCHEDULERS[kind], dict(config))
    wrong = fixed_problems(config, SCHEDULERS[kind].FIXED)
    if settings is None or wrong:
        raise BadInput(in_one_line(f"scheduler: {kind}", [*problems, *wrong]))
    return settings


def schedule_from(config: Mapping[str, Any], spacing: Spacing, features: int) -> Schedule:
    """The schedule of a scheduler_config.json.

    Raises:
        BadInput: as `scheduler_of`; if it has no such number of steps.
    """
    try:
        return scheduler_of(config).schedule(spacing, features)
    except ValueError as error:
        raise BadInput(f"scheduler: {config[CLASS]}: {error}") from None
