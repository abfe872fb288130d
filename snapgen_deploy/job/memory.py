"""Peak memory that an export needs on the computer it runs on: predicted from the plan, held against what is free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from snapgen_deploy.errors import Refused
from snapgen_deploy.export.base import Role
from snapgen_deploy.export.spec import Cost
from snapgen_deploy.families.names import title_of
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.plan.plan import ExportPlan, TargetPlan
from snapgen_deploy.plan.widths import activation_bytes
from snapgen_deploy.quantise.executors import executor_of
from snapgen_deploy.quantise.memory import predicted_peak

# Of the process that draws the reference's pictures. Like the targets' own figures (`snapgen_deploy.export.spec.Memory`) it
# lies a little above all that was measured on x86-64 Linux: the embedded checkpoint and an untrained student of 114M parameters
# (`python -m benchmarks.export_memory`), snapgenpp at 1024 x 1024 (`python -m benchmarks.scale`). Activations are the plan's
# estimate of the largest. Checkpoints in PyTorch's format, which are mapped as a whole while they are read, were not measured.
_REFERENCE = Cost(420_000_000, 1.15, 1.7)


@dataclass(frozen=True)
class Prediction:
    """Peak resident bytes of one process of an export."""

    bytes: int
    target: TargetPlan | None = None  # None: a process that serves all targets
    role: Role | None = None  # None: the process that runs what was saved
    shared: str = "reference"  # without a target: `reference` draws its pictures, `recipe` makes that of mixed precision

    @property
    def what(self) -> str:
        """For people."""
        if self.target is None:
            return self.shared
        return f"{self.target.key} {title_of(self.role) if self.role else 'check'}"


def weight_bytes(config: ModelConfig, width: str, role: Role) -> int:
    """Bytes of one component's parameters in fp32, the student's at `width`; 0 for a component that there is not."""
    return sum(4 * spec.parameters(width) for spec in components_of(config) if spec.name == role)


def predict(config: ModelConfig, plan: ExportPlan, executor: str = "here") -> tuple[Prediction, ...]:
    """Every process of an export: reference, recipe of mixed precision, each conversion of each target, and its check."""
    components = components_of(config)
    sizes = {spec.name: 4 * spec.parameters(plan.width) for spec in components}
    weights = sum(sizes.values())
    shapes = [(plan.latent, plan.resolution), *((s.latent, s.resolution) for s in plan.other_sizes)]
    activations = max(activation_bytes(config, plan.width, latent, size) for latent, size in shapes)
    own = {spec.name: max(spec.activations(plan.width, latent, size) for latent, size in shapes) for spec in components}
    found = [Prediction(_REFERENCE.of(weights, activations))]
    if plan.mixed is not None:
        peak = predicted_peak(config, plan.width, plan.latent, executor_of(executor))
        found.append(Prediction(peak, shared="recipe"))
    for target in plan.targets:
        memory = target.spec.memory
        cost = memory.at_precision.get(target.precision, memory.converting)
        forms = {target.form, *(dict(s.forms).get(target.key) for s in plan.other_sizes)}
        loops = memory.loop if "loop" in forms else 0
        running = sum(memory.at_option.get(option, 0.0) for option in target.options)
        for spec in components:
            more = round(running * own[spec.name]) + (loops if spec.has_forms else 0)
            found.append(Prediction(cost.of(sizes[spec.name], 0) + more, target, spec.name))
        found.append(Prediction(memory.checking.of(weights, activations), target))
    return tuple(found)


def largest(predictions: Sequence[Prediction]) -> Prediction:
    """Processes run one after the other: the largest decides."""
    return max(predictions, key=lambda p: p.bytes)


def line(prediction: Prediction, available: int | None) -> str:
    """For people: the figure, whose it is, and what it is held against."""
    free = "unknown" if available is None else f"{available / 1e9:.2f} GB"
    fits = available is None or prediction.bytes <= available
    verdict = "" if fits else ", does not fit"
    needed = f"about {prediction.bytes / 1e9:.2f} GB of memory (predicted; {prediction.what})"
    return f"exporting here takes {needed}, available {free}{verdict}"


def as_dict(predictions: Sequence[Prediction], available: int | None) -> dict[str, Any]:
    """Predicted peaks of all processes, and what this computer has available, in bytes."""
    targets: dict[str, dict[str, int]] = {}
    for p in predictions:
        if p.target is not None:
            targets.setdefault(p.target.key, {})[p.role or "check"] = p.bytes
    return {
        "predicted_peak_bytes": largest(predictions).bytes,
        "available_bytes": available,
        **{p.what: p.bytes for p in predictions if p.target is None},
        "targets": targets,
    }


def refuse_what_does_not_fit(predictions: Sequence[Prediction], available: int | None) -> None:
    """Refused (exit 3), with the figures, where the largest process is predicted to need more than is available."""
    if available is None or not predictions or largest(predictions).bytes <= available:
        return
    raise Refused(
        f"{line(largest(predictions), available)}; end other programs, choose a narrower --width or other targets, "
        "or export on a computer with more memory"
    )
