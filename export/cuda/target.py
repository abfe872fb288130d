"""ONNX for onnxruntime's CUDA provider: the graph of `onnx:cpu`, with attention as one operator that the provider runs fused.

Options besides those of `onnx:cpu`: `attention`, here `operator` by default; `spelled` leaves products and softmax, which
TensorRT fuses by itself and whose parser knows no operator of onnxruntime's own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from snapgen_deploy.export.base import Description
from snapgen_deploy.export.cuda.spec import CUDA, CUDA_UNIT
from snapgen_deploy.export.onnx.target import Onnx
from snapgen_deploy.export.onnx.write import OPERATOR


class OnnxCuda(Onnx):
    """ONNX files for NVIDIA GPUs."""

    variants: tuple[str, ...] = CUDA.variants
    precisions: tuple[str, ...] = CUDA.precisions
    providers: tuple[str, ...] = (CUDA_UNIT, *Onnx.providers)
    attention: str = OPERATOR

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
