"""Peak memory that an export needs on the computer it runs on: predicted from the plan, compared with what is available."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from snapgen_deploy.check.memory import check_bytes, largest_tensor
from snapgen_deploy.checkpoint.networks import stays_on_disk
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

# The process that draws the reference's pictures. Like the targets' own figures (`snapgen_deploy.export.spec.Memory`), this is
# slightly above everything measured on x86-64 Linux: the embedded checkpoint and an untrained student of 114M parameters
# (`python -m benchmarks.export_memory`), and snapgenpp at 1024 x 1024 (`python -m benchmarks.scale`). Activations are the
# plan's estimate of the largest ones. Checkpoints in PyTorch's format, which are mapped as a whole, were not measured.
_REFERENCE = Cost(420_000_000, 1.15, 1.7)
REFERENCE_PROCESS = "reference"  # the process that draws the reference's pictures
_RUN_FROM_DISK = Cost(100_000_000, 0.0, 1.0)  # of the largest tensor there are two copies as it is stored, in bf16


@dataclass(frozen=True)
class Prediction:
    """Predicted peak of resident memory, in bytes, of one process of an export."""

    bytes: int
    target: TargetPlan | None = None  # None: a process that serves all targets
    role: Role | None = None  # None: the process that runs the saved files
    shared: str = REFERENCE_PROCESS  # without a target: this draws pictures, `recipe` makes the recipe of mixed precision

    @property
    def what(self) -> str:
        """Name of the process, for messages."""
        if self.target is None:
            return self.shared
        return f"{self.target.key} {title_of(self.role) if self.role else 'check'}"


def weight_bytes(config: ModelConfig, width: str, role: Role) -> int:
    """Bytes of one component's parameters in fp32, at `width` if it is elastic; 0 for a component that the model lacks."""
    return sum(4 * spec.parameters(width) for spec in components_of(config) if spec.name == role)


def predict(config: ModelConfig, plan: ExportPlan, executor: str = "here") -> tuple[Prediction, ...]:
    """Predict every process of an export: reference, recipe of mixed precision, each conversion of each target, its check."""
    components = components_of(config)
    of_component = {spec.name: 4 * spec.parameters(plan.width) for spec in components}  # bytes
    on_disk = {spec.name: largest_tensor(spec) for spec in components if stays_on_disk(spec, plan.width)}
    weights = sum(bytes_ for name, bytes_ in of_component.items() if name not in on_disk)
    shapes = [(plan.latent, plan.resolution), *((s.latent, s.resolution) for s in plan.other_sizes)]
    one = max(activation_bytes(config, plan.width, latent, size) for latent, size in shapes)  # the reference draws one by one
    activations, batch = one * plan.batch, plan.batch
    own = {
        spec.name: max(spec.activation_bytes(plan.width, latent, size, batch) for latent, size in shapes) for spec in components
    }
    from_disk = max((_RUN_FROM_DISK.of(0, n) for n in on_disk.values()), default=0)
    found = [Prediction(_REFERENCE.of(weights, one) + from_disk)]
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
            bytes_, largest_one = of_component[spec.name], on_disk.get(spec.name)
            if largest_one is not None and target.precision in target.spec.by_tensor:
                most = max(stage.of(bytes_, largest_one) for stage in memory.converting_by_tensor)
                found.append(Prediction(most, target, spec.name))
                continue
            more = round(running * own[spec.name]) + (loops if spec.has_forms else 0)
            found.append(Prediction(cost.of(bytes_, 0) + more, target, spec.name))
        found.append(Prediction(check_bytes(config, plan.width, target.spec, target.precision, activations), target))
    return tuple(found)


def largest(predictions: Sequence[Prediction]) -> Prediction:
    """The largest prediction. It decides: those that run side by side take no more than it together, unless all are small."""
    return max(predictions, key=lambda p: p.bytes)


def by_process(predictions: Sequence[Prediction]) -> dict[tuple[str, Role | None], int]:
    """Predicted bytes by target and component; without a target, by what the process does."""
    return {(p.shared if p.target is None else p.target.key, p.role): p.bytes for p in predictions}


def line(prediction: Prediction, available: int | None) -> str:
    """One line for messages: the predicted memory, of which process, and what is available."""
    free = "unknown" if available is None else f"{available / 1e9:.2f} GB"
    fits = available is None or prediction.bytes <= available
    verdict = "" if fits else ", does not fit"
    needed = f"about {prediction.bytes / 1e9:.2f} GB of memory (predicted; {prediction.what})"
    return f"exporting here takes {needed}, available {free}{verdict}"


def as_dict(predictions: Sequence[Prediction], available: int | None) -> dict[str, Any]:
    """Predicted peaks of all processes and the available memory of this computer, in bytes."""
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
    """Refuse an export that would not fit in memory.

    Raises:
        Refused: with the figures, if the largest process is predicted to need more than is available.
    """
    if available is None or not predictions or largest(predictions).bytes <= available:
        return
    raise Refused(
        f"{line(largest(predictions), available)}; end other programs, choose a narrower --width or other targets, "
        "or export on a computer with more memory"
    )
