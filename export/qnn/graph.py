"""ONNX graphs for Qualcomm's NPU: operations that it computes correctly, 8-bit weights and 16-bit activations.

Measured with onnxruntime-qnn 2.7.0 (QNN 2.51), on its emulation:

- `Reciprocal` of 16-bit activations whose range ends at h < 1 comes out as h times its value (of 0.23 ... 0.45: 0.45 times);
  `Div` is right to 5e-4, so every product with a reciprocal becomes a quotient.
- `Einsum` is not taken; the batched and looped kernel forms have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy.export.base import Component
from snapgen_deploy.system.quiet import quiet


def divide(model: Any) -> None:
    """Replace `a * (1 / x)` by `a / x` in place, and other reciprocals by the division `1 / x`."""
    import onnx

    graph = model.graph
    inverses = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Reciprocal"}
    for node in graph.node:
        if node.op_type == "Mul" and (at := [i for i, name in enumerate(node.input) if name in inverses]):
            place = at[-1]
            other, inverse = node.input[1 - place], inverses[node.input[place]]
            node.op_type = "Div"
            node.input[:] = [other, inverse]
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    kept = [n for n in graph.node if n.op_type != "Reciprocal" or n.output[0] in used]
    left = [n for n in kept if n.op_type == "Reciprocal"]
    if left:
        one = onnx.numpy_helper.from_array(np.ones(1, np.float32), "one_of_quotients")
        graph.initializer.append(one)
    for node in left:
        node.op_type = "Div"
        node.input[:] = [one.name, node.input[0]]
    del graph.node[:]
    graph.node.extend(kept)


def quantise(plain: Path, component: Component, made: Path) -> None:
    """Write `plain` with 8-bit weights and 16-bit activations (`QuantizeLinear` and `DequantizeLinear` around every node).

    Ranges are the least and the largest values over the component's calibration inputs.

    Raises:
        BadInput: if there are no calibration inputs.
    """
    from onnxruntime.quantization import QuantType, quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    with quiet():  # its own preparation (`qnn_preprocess_model`) has nothing to do here, and fails on a file with metadata
        kinds = {"activation_type": QuantType.QUInt16, "weight_type": QuantType.QUInt8}
        quantize(str(plain), str(made), get_qnn_qdq_config(str(plain), _Reader(component), **kinds))


class _Reader:
    """A component's calibration inputs with onnxruntime's interface."""

    def __init__(self, component: Component) -> None:
        self._component = component
        self._inputs: Iterator[dict[str, np.ndarray]] = component.calibrating()

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next inputs, None at the end."""
        return next(self._inputs, None)

    def rewind(self) -> None:
        """Start again with the first inputs."""
        self._inputs = self._component.calibrating()
