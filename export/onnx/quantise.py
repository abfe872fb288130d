"""Quantises an exported fp32 ONNX file with onnxruntime's own quantisers.

onnxruntime's 8-bit products of unsigned activations and signed weights saturate on x86 processors without VNNI; the gates run
the file and detect it. Convolutions stay fp32 except with `int8-static`: the CPU provider has no fast kernel for dynamic ones.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from snapgen_deploy.export.base import Component
from snapgen_deploy.export.onnx import file as onnx_file
from snapgen_deploy.export.onnx.palettes import Owners, owners, palettise
from snapgen_deploy.system.quiet import quiet

_BLOCK = 32  # inputs that share a scale in MatMulNBits


@dataclass(frozen=True)
class _Exact:
    """fp32, as exported."""


@dataclass(frozen=True)
class _Half:
    """Weights and operators in fp16; inputs and outputs stay fp32. The CPU provider converts where it has no fp16 kernel."""


@dataclass(frozen=True)
class _Dynamic:
    """8-bit weights of products with a scale per channel, and 8-bit activations whose range is measured at run time."""


@dataclass(frozen=True)
class Static:
    """8-bit weights of products and convolutions, and 8-bit activations with ranges from calibration inputs."""


@dataclass(frozen=True)
class Blocks:
    """`MatMulNBits`: weights of products in few bits, a scale for every `block` inputs; activations stay fp32."""

    bits: int
    block: int = _BLOCK


@dataclass(frozen=True)
class Palettes:
    """Weights with few values as indices and a table; `known` finds them in the graph, see `onnx_palettes.owners`."""

    known: Owners = field(default_factory=dict)


How = _Exact | _Half | _Dynamic | Static | Blocks | Palettes
PRECISIONS: Mapping[str, How] = MappingProxyType(
    {"fp32": _Exact(), "fp16": _Half(), "int8-dynamic": _Dynamic(), "int8-static": Static(), "int4": Blocks(4)}
)
TAKEN: Mapping[type[How], tuple[str, ...]] = MappingProxyType(  # operators whose weights each quantiser takes
    {_Dynamic: ("MatMul",), Static: ("MatMul", "Conv"), Blocks: ("MatMul",)}
)


def how_of(precision: str, component: Component) -> How:
    """How a component is stored at a precision; with `mixed` by its palettes, or in half precision if it has none.

    Call it before the component's weights are released.
    """
    if precision != "mixed":
        return PRECISIONS[precision]
    return Palettes(owners(component)) if component.palettes else _Half()


def quantise(source: Path, how: How, component: Component, made: Path) -> Path:
    """Write the quantised form of `source` to `made` and return the path to ship.

    That is `source` itself for `_Exact`, and if the network has no layer that the quantiser takes (a decoder without products).
    The same file and calibration inputs give the same weights.

    Raises:
        BadInput: if calibration inputs are needed and there are none.
        RuntimeError: if the quantiser took none of the layers, or a palette's weight is not in the graph.
    """
    if isinstance(how, _Exact):
        return source
    made.parent.mkdir(parents=True, exist_ok=True)
    model = onnx_file.load(source)
    _prepare(model)
    with quiet():  # they log a line for every node
        if isinstance(how, Palettes):
            palettise(model, component.palettes, how.known)
            onnx_file.save(model, made, onnx_file.BIG)
            return made
        if isinstance(how, _Half):
            from onnxruntime.quantization.onnx_model import ONNXModel
            from onnxruntime.transformers.float16 import convert_float_to_float16

            onnx_file.infer_shapes(model)  # the converter would, with more copies of the weights
            model = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
            ONNXModel(model).topological_sort()
            onnx_file.save(model, made, onnx_file.BIG)
            return made
        layers = weighted(model, TAKEN[type(how)])
        if not layers:
            return source
        if isinstance(how, Blocks):
            model = _in_blocks(model, how)
        else:
            plain = made.with_name(f"prepared-{made.name}")
            onnx_file.save(model, plain, 0)  # outside, so that shapes are inferred without a copy of the weights
            del model
            _eight_bits(plain, how, component, made)
            gc.collect()  # the quantiser's copies of the weights are held by reference cycles
            plain.unlink()
            plain.with_name(f"{plain.name}.data").unlink()
            model = onnx_file.load(made)
    left = weighted(model, TAKEN[type(how)])
    if len(left) >= len(layers):
        raise RuntimeError(f"onnxruntime's quantiser took none of the {len(layers)} layers, first {layers[0]}")
    onnx_file.save(model, made, onnx_file.BIG)
    return made


def weighted(model: Any, operators: tuple[str, ...]) -> list[str]:
    """Names of the nodes of these kinds whose second input is a float constant."""
    import onnx

    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    constants = {w.name for w in model.graph.initializer if w.data_type in floats}
    return [n.name for n in model.graph.node if n.op_type in operators and len(n.input) > 1 and n.input[1] in constants]


def _prepare(model: Any) -> None:
    """Replace Gemm by MatMul and Add in place, which every quantiser takes, and drop the shapes, which would be stale."""
    from onnxruntime.quantization.onnx_model import ONNXModel

    ONNXModel(model).replace_gemm_with_matmul()
    del model.graph.value_info[:]


def _in_blocks(model: Any, how: Blocks) -> Any:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantiser = MatMulNBitsQuantizer(model, bits=how.bits, block_size=how.block, is_symmetric=True)
    quantiser.process()
    return quantiser.model.model


def _eight_bits(plain: Path, how: How, component: Component, made: Path) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static

    shared: dict[str, Any] = {
        "op_types_to_quantize": list(TAKEN[type(how)]),
        "per_channel": True,
        "weight_type": QuantType.QInt8,
        "use_external_data_format": True,
    }
    options = {
        "MatMulConstBOnly": True,  # products of two activations, which attention is made of, stay exact
        "DefaultTensorType": 1,  # FLOAT: what follows onnxruntime's own operators has no inferred type
    }
    if isinstance(how, _Dynamic):
        quantize_dynamic(plain, made, extra_options=options, **shared)
        return
    quantize_static(
        plain, made, _Reader(component), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
        calibrate_method=CalibrationMethod.MinMax, extra_options=options, **shared,
    )  # fmt: skip


class _Reader:
    """A component's calibration inputs with onnxruntime's interface."""

    def __init__(self, component: Component) -> None:
        self._inputs: Iterator[dict[str, np.ndarray]] = component.calibrating()

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next inputs, None at the end."""
        return next(self._inputs, None)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self._inputs

    def __len__(self) -> int:
        raise TypeError("calibration inputs come one at a time")
