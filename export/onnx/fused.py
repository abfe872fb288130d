"""Attention of an exported graph in the operators that onnxruntime has for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from snapgen_deploy.export.onnx.attention import attention_operators
from snapgen_deploy.export.onnx.attention_times import AttentionShape, operator_wins
from snapgen_deploy.export.onnx.rotary import rotary_operators
from snapgen_deploy.export.onnx.write import MEASURED, OPERATOR

if TYPE_CHECKING:
    import onnx_ir

_WINS: Mapping[str, Callable[[AttentionShape], bool]] = {MEASURED: operator_wins, OPERATOR: lambda shape: True}


def fuse(model: onnx_ir.Model, form: str) -> str:
    """Write attention in the form of the option `attention`, in place, and say what was done; nothing for `spelled`."""
    if form not in _WINS:
        return ""
    counts = {"rotations": rotary_operators(model), "attentions": attention_operators(model, _WINS[form])}
    return "".join(f", {count} {what} as operators" for what, count in counts.items() if count)
