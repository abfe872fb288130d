"""ONNX for onnxruntime's CUDA provider: the graph of `onnx:cpu`, with attention as one operator that the provider runs fused.

Options besides those of `onnx:cpu`: `attention`, here `operator` by default; `spelled` leaves products and softmax, which
TensorRT fuses by itself and whose parser knows no operator of onnxruntime's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from snapgen_deploy.export.base import Artifact, Component, Description
from snapgen_deploy.export.cuda.spec import CUDA, CUDA_UNIT
from snapgen_deploy.export.onnx.target import Onnx


class OnnxCuda(Onnx):
    """ONNX files for NVIDIA GPUs."""

    variants: tuple[str, ...] = CUDA.variants
    precisions: tuple[str, ...] = CUDA.precisions
    providers: tuple[str, ...] = (CUDA_UNIT, *Onnx.providers)

    def export(
        self, component: Component, variant: str, precision: str, directory: Path, options: Mapping[str, str]
    ) -> Artifact:
        """Write `<role>.onnx` (and `<role>.onnx.data` for large weights) into `directory`.

        Raises:
            BadInput: if the variant, precision or an option is not offered.
            RuntimeError: if torch or onnx refuse the network; the message is one line.
        """
        return super().export(component, variant, precision, directory, {"attention": "operator", **options})

    def unavailable(self, variant: str) -> str | None:
        """None if onnxruntime here has the CUDA provider."""
        if (reason := super().unavailable(variant)) is not None:
            return reason
        return (
            None
            if CUDA_UNIT in _providers()
            else f"onnxruntime has no {CUDA_UNIT} here: it needs onnxruntime-gpu and an NVIDIA GPU"
        )

    def describe(self, path: Path, entry: str = "") -> Description:
        """Operators and weights of the saved file; where nodes run, only with a GPU.

        Raises:
            BadInput: if the file is missing or not a model, or `entry` is given.
        """
        described = super().describe(path, entry)
        return described if CUDA_UNIT in _providers() else replace(described, placement={})


def _providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())
