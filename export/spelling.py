"""How each target wants networks written: operations of the token layout, and upsampling."""

from __future__ import annotations

from snapgen_deploy.sparse import OpForm, UpsampleForm


def spelling(target: str, precision: str) -> tuple[OpForm, UpsampleForm | None]:
    """How a target (by its key) has networks written: operations of the token layout, and upsampling (None: the layout's)."""
    if target.partition(":")[0] == "onnx":
        return "native", "native"  # onnxruntime fuses whole norms; the delegates of phones take them only spelled out
    # Vulkan's delegate takes whole norms, too, and then does not load those without a weight (executorch 1.4.1).
    return "half" if precision == "fp16" else "spelled", "native" if target == "executorch:vulkan" else None
