"""Puts stored weights in the place of a graph's inputs (`export.shared.weights_given`), one after the other.

Products become `MatMulNBits`, with the numbers that onnxruntime's quantiser gives. A table of embeddings is looked up in 8-bit
numbers, and a `Cast` turns the rows in use into floats; that quantiser would leave the table in fp32. Each weight goes to the
file beside the model at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from snapgen_deploy.export.shared.weights_given import SCALES, GivenWeight, in_rows

if TYPE_CHECKING:
    import onnx_ir

    from snapgen_deploy.export.onnx.quantise import Blocks

_MICROSOFT = "com.microsoft"
_PAGE = 4096  # bytes; weights begin at multiples, so that a runtime can map them


def store_initializers(model: onnx_ir.Model, given: Iterable[GivenWeight], how: Blocks, data: Path) -> None:
    """Replace the given inputs of `model`, in place, by weights in the file `data`, which will lie beside the model.

    Raises:
        RuntimeError: if a weight is used otherwise than in a product or a lookup.
    """
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    with data.open("wb") as file:
        for weight in given:
            value = inputs.pop(weight.name)
            if weight.is_table:
                _table(graph, (value, inputs.pop(weight.name + SCALES)), weight, file)
            else:
                _products(graph, value, weight, how, file)
    graph.inputs[:] = list(inputs.values())
    model.opset_imports.setdefault(_MICROSOFT, 1)


def write_graph(model: onnx_ir.Model, path: Path) -> None:
    """Save a model whose large weights are stored already."""
    import onnx_ir

    path.write_bytes(onnx_ir.to_proto(model).SerializeToString(deterministic=True))
    model.graph.initializers.clear()


def _table(graph: Any, values: tuple[Any, Any], weight: GivenWeight, file: IO[bytes]) -> None:
    """Look up 8-bit rows, and turn those that were found into floats; the graph multiplies them by their scales."""
    import onnx_ir

    numbers, scales = in_rows(weight.read())
    rows = _stored(graph, f"{weight.parameter}_quantized", numbers.numpy(), file)
    values[1].replace_all_uses_with(_stored(graph, f"{weight.parameter}_scale", scales.numpy(), file))
    for node, place in list(values[0].uses()):
        if node.op_type != "Gather" or place != 0:
            raise _misused(weight, node)
        found = onnx_ir.node("Gather", [rows, node.inputs[1]], node.attributes, name=f"{node.name}_quantized")
        found.outputs[0].name = f"{node.outputs[0].name}_quantized"
        cast = onnx_ir.node("Cast", [found.outputs[0]], {"to": int(onnx_ir.DataType.FLOAT)}, name=f"{node.name}_float")
        onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], [found, cast], node.outputs, cast.outputs)


def _products(graph: Any, value: Any, weight: GivenWeight, how: Blocks, file: IO[bytes]) -> None:
    """Turn `MatMul(x, Transpose(weight))` into `MatMulNBits(x, weight)`."""
    import onnx_ir

    outputs, inputs = (int(n) for n in value.shape)
    packed, scales = _in_blocks(weight.read().float().numpy(), how)
    stored = [_stored(graph, f"{weight.parameter}_{end}", x, file) for end, x in ((f"Q{how.bits}", packed), ("scales", scales))]
    about = {"K": inputs, "N": outputs, "bits": how.bits, "block_size": how.block}
    for turned, _ in list(value.uses()):
        if turned.op_type != "Transpose":
            raise _misused(weight, turned)
        for node, place in list(turned.outputs[0].uses()):
            if node.op_type != "MatMul" or place != 1:
                raise _misused(weight, node)
            made = onnx_ir.node(
                "MatMulNBits", [node.inputs[0], *stored], about, domain=_MICROSOFT, name=f"{node.name}_Q{how.bits}"
            )
            onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], [made], node.outputs, made.outputs)
        graph.remove(turned, safe=True)


def _in_blocks(weight: np.ndarray, how: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (out, blocks, block / 2 bytes) and scales (out * blocks,) of a weight (out, in), as `MatMulNBits` takes them."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

    settings = DefaultWeightOnlyQuantConfig(block_size=how.block, is_symmetric=True, bits=how.bits)
    packed, scales, _ = DefaultWeightOnlyQuantizer(settings).qbits_block_quant(np.ascontiguousarray(weight.T))
    return packed, scales


def _stored(graph: Any, name: str, array: np.ndarray, file: IO[bytes]) -> Any:
    """An initializer whose values are written to `file`."""
    import onnx_ir

    offset = -(-file.tell() // _PAGE) * _PAGE
    file.seek(offset)
    file.write(np.ascontiguousarray(array).data)
    kind, shape = onnx_ir.DataType.from_numpy(array.dtype), onnx_ir.Shape(array.shape)
    tensor = onnx_ir.ExternalTensor(Path(file.name).name, offset, array.nbytes, kind, shape=shape, name=name)
    value = onnx_ir.Value(name=name, shape=shape, type=onnx_ir.TensorType(kind), const_value=tensor)
    graph.register_initializer(value)
    return value


def _misused(weight: GivenWeight, node: Any) -> RuntimeError:
    return RuntimeError(f"{weight.parameter} is used by {node.op_type}, which takes no weight in few bits")
