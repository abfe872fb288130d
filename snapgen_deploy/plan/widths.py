"""Which widths fit a device: each is compared with its memory budget and, if the latency is known, its latency budget.

Memory figures are estimates: bytes of the weights at the target's precision, and the largest activations of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from snapgen_deploy.device_profiles import Profile
from snapgen_deploy.export.precisions import PRECISIONS
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models.config import ModelConfig
from snapgen_deploy.plan.plan import TargetPlan
from snapgen_deploy.plan.sizes import Size

WEIGHT_BYTES = {name: precision.weight_bytes for name, precision in PRECISIONS.items()}


class LatencyEstimate(Protocol):
    """An estimator's answer for one width; times in ms of one picture."""

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
        """The estimate, its interval and its basis, in one line."""
        ...


Estimator = Callable[[str, str, str], LatencyEstimate | None]  # width, target key, precision; None without a basis


@dataclass(frozen=True)
class JudgedBy:
    """The estimator of times, the user's limit for a picture, in ms, and how many pictures a call draws."""

    estimator: Estimator | None
    max_latency_ms: float | None
    batch: int = 1


@dataclass(frozen=True)
class _Judged:
    """One width: bytes on the device, ms of a picture, and the reasons why it does not fit."""

    width: str
    memory: int
    latency_ms: float | None
    obstacles: tuple[str, ...]
    line: str


def judge_width(
    config: ModelConfig,
    profile: Profile,
    width: str,
    targets: Sequence[TargetPlan],
    sizes: Sequence[Size],
    limits: JudgedBy,
) -> _Judged:
    """Compare one width with the budgets; its figures are in `line`."""
    weight_bytes = max(map(_weight_bytes, targets))
    largest = max(sizes, key=lambda s: s.resolution[0] * s.resolution[1])  # all activations grow with the area
    memory = estimate_memory(config, width, largest.latent, largest.resolution, weight_bytes, limits.batch)
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


def _weight_bytes(target: TargetPlan) -> float:
    """Bytes of one weight in memory, as the target's runtime loads it."""
    return WEIGHT_BYTES[target.spec.loaded_as.get(target.precision, target.precision)]


def _latency(
    config: ModelConfig,
    profile: Profile,
    width: str,
    targets: Sequence[TargetPlan],
    size: tuple[int, int],
    limits: JudgedBy,
) -> tuple[float | None, str, str]:
    """Time of a picture in ms if it is known, a text about it, and the reason why it does not fit, if any."""
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
        and not config.guided
        and limits.batch == 1
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


def _estimate(width: str, targets: Sequence[TargetPlan], limits: JudgedBy) -> LatencyEstimate | None:
    """The estimate for the first target that has a basis."""
    if limits.estimator is None:
        return None
    return next((found for t in targets if (found := limits.estimator(width, t.key, t.precision)) is not None), None)


def estimate_memory(
    config: ModelConfig,
    width: str,
    latent: tuple[int, int, int],
    size: tuple[int, int],
    weight_bytes: float,
    batch: int = 1,
) -> int:
    """Estimated peak bytes: all weights, and the largest activations."""
    parameters = sum(spec.parameters(width) for spec in components_of(config))
    return round(parameters * weight_bytes) + activation_bytes(config, width, latent, size, batch)


def activation_bytes(
    config: ModelConfig, width: str, latent: tuple[int, int, int], size: tuple[int, int], batch: int = 1
) -> int:
    """Estimated bytes of any component's largest activations in a call of `batch` pictures, 4 bytes an element."""
    return max(spec.activation_bytes(width, latent, size, batch) for spec in components_of(config))


def memory_hint(judged: Sequence[_Judged]) -> str:
    """A hint for the message if a width does not fit the memory budget."""
    short = any("memory" in j.obstacles for j in judged)
    return "; where the app may take more memory, say how much with --memory-budget" if short else ""
