"""Peak memory that an export needs on the computer it runs on: predicted from the plan, held against what is free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from snapgen_deploy.errors import Refused
from snapgen_deploy.export.base import ROLES, Role
from snapgen_deploy.models import DiT, ModelConfig, TextEncoder, TinyDecoder
from snapgen_deploy.plan.plan import ExportPlan, TargetPlan
from snapgen_deploy.plan.widths import activation_bytes, decoder_activations, student_activations
from snapgen_deploy.quantise.executors import executor_of
from snapgen_deploy.quantise.memory import predicted_peak


@dataclass(frozen=True)
class Cost:
    """Bytes of a process without a network, for each byte of its weights in fp32, and for each byte of its activations."""

    base: int
    weights: float
    activations: float = 0.0

    def of(self, weights: int, activations: int) -> int:
        """Bytes."""
        return self.base + round(self.weights * weights + self.activations * activations)


# Each lies a little above all that was measured on x86-64 Linux: the embedded checkpoint and an untrained student of 114M
# parameters (`python -m benchmarks.export_memory`), snapgenpp at 1024 x 1024 (`python -m benchmarks.scale`). Activations
# are the plan's estimate of the largest. Checkpoints in PyTorch's format, which are mapped as a whole while they are read, were
# not measured. Of ExecuTorch's Core ML and Vulkan delegates only the embedded checkpoint was; what they take for each byte of a
# weight counts the copies that the conversion makes. Converting one component takes:
CONVERTING: Mapping[str, Cost] = {
    "onnx": Cost(660_000_000, 1.45),
    "coreml": Cost(600_000_000, 1.7),
    "coreai": Cost(620_000_000, 1.7),
    "executorch": Cost(650_000_000, 1.3),
    "executorch:coreml": Cost(800_000_000, 2.4),
    "executorch:vulkan": Cost(700_000_000, 2.4),
    # of the embedded checkpoint alone, with a wide margin; the compiler's process included
    "onnx:qnn": Cost(1_000_000_000, 8.0),
}
# More for ExecuTorch where the local attention is a loop over blocks: sets of its partitioner that grow with the square of the
# number of operators.
EXECUTORCH_LOOP = 700_000_000
# What differs by precision. Core AI in fp32: the converter, the file's constants and their copies are each of the size of
# torch's weights. ONNX in fp16 holds both forms for a while; onnxruntime's 8-bit quantiser holds the graph, a copy of every
# weight in fp32 and the quantised ones.
AT_PRECISION: Mapping[tuple[str, str], Cost] = {
    ("coreai", "fp32"): Cost(620_000_000, 3.2),
    ("onnx:cpu", "fp16"): Cost(660_000_000, 1.8),
    ("onnx:cpu", "int8-dynamic"): Cost(660_000_000, 3.3),
    ("onnx:cpu", "int8-static"): Cost(660_000_000, 3.3),
    ("onnx:cpu", "int4"): Cost(660_000_000, 1.8),
    ("onnx:cpu", "mixed"): Cost(660_000_000, 1.8),
}
# More for each byte of a component's activations where optimum's validator runs it in the converting process.
VALIDATING = 1.8
# Running what was saved, all components at once; and drawing the reference's pictures.
CHECKING: Mapping[str, Cost] = {
    "onnx": Cost(380_000_000, 1.75, 5.0),
    "coreml": Cost(600_000_000, 1.65, 2.1),
    "coreai": Cost(900_000_000, 3.0, 4.0),
    "executorch": Cost(400_000_000, 2.1, 1.2),
    "executorch:coreml": Cost(700_000_000, 1.65, 2.1),
    "executorch:vulkan": Cost(400_000_000, 2.1, 1.2),
    "onnx:qnn": Cost(1_500_000_000, 4.0, 4.0),  # as above: a process for each component
}
REFERENCE = Cost(420_000_000, 1.15, 1.7)


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
        return f"{self.target.key} {self.role.replace('_', ' ') if self.role else 'check'}"


def weight_bytes(config: ModelConfig, width: str, role: Role) -> int:
    """Bytes of one component's parameters in fp32, the student's at `width`; 0 for a component that there is not."""
    import torch

    with torch.device("meta"):
        if role == "student":
            parameters = DiT(config.student, width).parameters()
        elif role == "decoder" and config.decoder is not None:
            parameters = TinyDecoder(config.decoder).parameters()
        elif role == "text_encoder" and config.text_encoder is not None:
            parameters = TextEncoder(config.text_encoder).parameters()
        else:
            return 0
    return 4 * sum(p.numel() for p in parameters)


def predict(config: ModelConfig, plan: ExportPlan, executor: str = "here") -> tuple[Prediction, ...]:
    """Every process of an export: reference, recipe of mixed precision, each conversion of each target, and its check."""
    sizes = {role: weight_bytes(config, plan.width, role) for role in ROLES}
    weights = sum(sizes.values())
    shapes = [(plan.latent, plan.resolution), *((s.latent, s.resolution) for s in plan.other_sizes)]
    activations = max(activation_bytes(config, plan.width, latent, size) for latent, size in shapes)
    own = {
        "student": max(student_activations(config, plan.width, latent) for latent, _ in shapes),
        "decoder": max(decoder_activations(config, size) for _, size in shapes),
    }
    found = [Prediction(REFERENCE.of(weights, activations))]
    if plan.mixed is not None:
        peak = predicted_peak(config.student, plan.width, plan.latent, executor_of(executor))
        found.append(Prediction(peak, shared="recipe"))
    for target in plan.targets:
        cost = AT_PRECISION.get((target.key, target.precision)) or _of(CONVERTING, target)
        forms = {target.form, *(dict(s.forms).get(target.key) for s in plan.other_sizes)}
        loops = EXECUTORCH_LOOP if target.target == "executorch" and "loop" in forms else 0
        validating = VALIDATING if dict(target.options).get("optimize") == "optimum" else 0.0
        for role, size in sizes.items():
            more = round(validating * own.get(role, 0)) + (loops if role == "student" else 0)
            found += [Prediction(cost.of(size, 0) + more, target, role)] if size else []
        found.append(Prediction(_of(CHECKING, target).of(weights, activations), target))
    return tuple(found)


def _of(costs: Mapping[str, Cost], target: TargetPlan) -> Cost:
    """Of the variant where it has a row of its own."""
    return costs.get(target.key) or costs[target.target]


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
