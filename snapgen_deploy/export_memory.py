"""Peak memory that an export needs on the computer it runs on: predicted from the plan, held against what is free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from snapgen_deploy.errors import Refused
from snapgen_deploy.export.base import ROLES, Role
from snapgen_deploy.models import DiT, ModelConfig, TextEncoder, TinyDecoder
from snapgen_deploy.plan import ExportPlan, TargetPlan

# Target -> bytes of the converting process without weights, and bytes for each byte of the component's weights in fp32: a line
# through the peak resident memory of the embedded checkpoint's three components and of an untrained 114M-parameter student,
# measured on x86-64 Linux by `python -m benchmarks.export_memory` (results/export_memory.txt), moved up to lie above every
# point. Checkpoints in PyTorch's format, which are mapped as a whole while they are read, were not measured.
COSTS: Mapping[str, tuple[int, float]] = {
    "onnx": (660_000_000, 1.2),
    "coreml": (600_000_000, 1.7),
    "executorch": (650_000_000, 2.1),
}
# For a target without figures of its own.
DEAREST = (max(base for base, _ in COSTS.values()), max(factor for _, factor in COSTS.values()))


@dataclass(frozen=True)
class Prediction:
    """Peak resident bytes of the process that converts one component."""

    target: TargetPlan
    role: Role
    bytes: int


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


def predict(config: ModelConfig, plan: ExportPlan) -> tuple[Prediction, ...]:
    """The conversion of every component of the plan, each of which has a process of its own."""
    sizes = {role: weight_bytes(config, plan.width, role) for role in ROLES}
    found = []
    for target in plan.targets:
        base, factor = COSTS.get(target.target, DEAREST)
        found += [Prediction(target, role, base + round(factor * size)) for role, size in sizes.items() if size]
    return tuple(found)


def largest(predictions: Sequence[Prediction]) -> Prediction:
    """Processes run one after the other: the largest decides."""
    return max(predictions, key=lambda p: p.bytes)


def line(prediction: Prediction, available: int | None) -> str:
    """For people: the figure, whose it is, and what it is held against."""
    free = "unknown" if available is None else f"{available / 1e9:.2f} GB"
    fits = available is None or prediction.bytes <= available
    verdict = "" if fits else ", does not fit"
    role = prediction.role.replace("_", " ")
    return (
        f"exporting here takes about {prediction.bytes / 1e9:.2f} GB of memory (predicted; {prediction.target.key} {role}), "
        f"available {free}{verdict}"
    )


def refuse_what_does_not_fit(predictions: Sequence[Prediction], available: int | None) -> None:
    """Refused (exit 3), with the figures, where the largest process is predicted to need more than is available."""
    if available is None or not predictions or largest(predictions).bytes <= available:
        return
    raise Refused(
        f"{line(largest(predictions), available)}; end other programs, choose a narrower --width or other targets, "
        "or export on a computer with more memory"
    )
