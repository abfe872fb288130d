"""Small tools for graphs of onnx-ir."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir

ORT_DOMAIN = "com.microsoft"  # of onnxruntime's own operators


def constant(value: onnx_ir.Value | None) -> np.ndarray | None:
    """The array of a constant; None for what is computed, or left out."""
    import onnx_ir as ir

    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def initializer(model: onnx_ir.Model, name: str, array: np.ndarray) -> onnx_ir.Value:
    """The initializer of that name; a new one holds `array`."""
    import onnx_ir as ir

    if name not in model.graph.initializers:
        model.graph.initializers[name] = ir.val(name, const_value=ir.tensor(array, name=name))
    return model.graph.initializers[name]


def drop_unused(model: onnx_ir.Model) -> None:
    """Remove, in place, nodes whose outputs nothing reads, those that only they read, and constants without a reader."""
    kept = set(model.graph.outputs)
    for node in [*reversed(model.graph)]:
        if not any(value.uses() or value in kept for value in node.outputs):
            model.graph.remove(node, safe=True)
    for name in [n for n, value in model.graph.initializers.items() if not value.uses() and value not in kept]:
        del model.graph.initializers[name]
