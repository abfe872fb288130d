"""The end of a classifier (coremltools: iOS15/classify.py)."""

from __future__ import annotations

from torch import Tensor

from snapgen_deploy.export.mil.ops.registry import op

Label = str | int


@op("classify", moves=True)
def classify(probabilities: Tensor, classes: tuple[Label, ...]) -> tuple[Label, dict[Label, float]]:
    """The most probable class (of equal ones, the first), and every class with its probability."""
    values = probabilities.reshape(-1)
    if len(classes) != values.numel():
        raise ValueError(f"{values.numel()} probabilities for {len(classes)} classes")
    return classes[int(values.argmax())], dict(zip(classes, values.tolist(), strict=True))
