"""Quantises networks for XNNPACK: Linear layers dynamically with torchao, convolutions with pt2e; or half precision.

Linear layers measure the range of their activations at run time, per token; convolutions get fixed ranges from calibration.
XNNPACK runs both in its own 8-bit kernels, inside one delegate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import nn

from snapgen_deploy.export.base import Component
from snapgen_deploy.export.shared.graph import trace
from snapgen_deploy.export.shared.half import HalfInside

if TYPE_CHECKING:
    import torch

_GROUP = 32  # inputs that share a scale in 4-bit weights; XNNPACK takes multiples of 32


@dataclasses.dataclass(frozen=True)
class _Exact:
    """fp32, unchanged."""


@dataclasses.dataclass(frozen=True)
class _Half:
    """Weights and arithmetic in fp16; inputs and outputs of the program stay fp32 and are converted at its ends."""


@dataclasses.dataclass(frozen=True)
class _Dynamic:
    """Linear weights of `bits` with 8-bit activations measured at run time; convolutions in 8 bits with calibrated ranges."""

    bits: int
    group: int | None  # inputs that share a scale; None: one scale an output channel

    def takes(self, module: nn.Module) -> bool:
        """Whether it is a Linear layer whose inputs divide into groups."""
        return isinstance(module, nn.Linear) and module.in_features % (self.group or 1) == 0


_How = _Exact | _Half | _Dynamic
PRECISIONS: Mapping[str, _How] = MappingProxyType(
    {"fp32": _Exact(), "fp16": _Half(), "int8-dynamic": _Dynamic(8, None), "int4-dynamic": _Dynamic(4, _GROUP)}
)


def traced(component: Component, how: _How) -> torch.export.ExportedProgram:
    """The component's graph at a precision, ready to lower; the module of the component is changed in place.

    Raises:
        BadInput: if convolutions must be calibrated and there are no calibration inputs.
        RuntimeError: if the quantiser skipped layers that it should quantise.
    """
    if isinstance(how, _Exact):
        return trace(component)
    if isinstance(how, _Half):
        return _in_half(component)
    return _dynamic(component, how)


def takes_none(component: Component, how: _How) -> bool:
    """Whether a network has Linear layers, no convolutions, and no layer whose inputs divide into groups."""
    kinds = [m for m in component.module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return isinstance(how, _Dynamic) and bool(kinds) and not any(isinstance(m, nn.Conv2d) or how.takes(m) for m in kinds)


def _dynamic(component: Component, how: _Dynamic) -> torch.export.ExportedProgram:
    import torch
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    def fits(module: nn.Module, name: str) -> bool:
        return how.takes(module)

    linear = [n for n, m in component.module.named_modules() if how.takes(m)]
    config = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=getattr(torch, f"int{how.bits}"),
        weight_granularity=PerAxis(0) if how.group is None else PerGroup(how.group),
    )
    quantize_(component.module, config, filter_fn=fits)
    missed = [n for n in linear if "Intx" not in type(component.module.get_submodule(n).weight).__name__]
    if missed:
        raise RuntimeError(f"torchao left {len(missed)} of {len(linear)} Linear layers as they were, first {missed[0]}")
    program = trace(component)
    convolves = any(isinstance(m, nn.Conv2d) for m in component.module.modules())
    return _convolutions(program, component) if convolves else program


def _convolutions(program: torch.export.ExportedProgram, component: Component) -> torch.export.ExportedProgram:
    """Convolutions in 8 bits with pt2e, with ranges of the activations from the component's calibration inputs.

    Fixed ranges, because XNNPACK computes convolutions with dynamic ones wrongly behind a reshape. In the decoder, whose norms
    reshape, they fail when they run. Both lower without complaint (executorch 1.4.1, see the finding
    xnnpack-dynamic-convolution-behind-reshape).
    """
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = get_symmetric_quantization_config(is_per_channel=True)
    quantizer = XNNPACKQuantizer().set_operator_type(torch.ops.aten.conv2d.default, config)
    with torch.no_grad():
        prepared = prepare_pt2e(program.module(), quantizer)
        for inputs in component.calibrating():
            prepared(*(torch.from_numpy(inputs[p.name]) for p in component.inputs))
        program = torch.export.export(convert_pt2e(prepared), component.example, strict=False)
    if not any("quantize_per_channel" in str(n.target) for n in program.graph.nodes):
        raise RuntimeError("pt2e quantised none of the convolutions")
    return program


def _in_half(component: Component) -> torch.export.ExportedProgram:
    """Half precision without conversions inside: numbers in the graph become fp16 constants, and silu is decomposed."""
    import torch

    program = trace(dataclasses.replace(component, module=HalfInside(component.module).eval()))
    module = program.module()
    _spell(module)
    with torch.no_grad():
        return torch.export.export(module, component.example, strict=False)


def _spell(module: Any) -> None:
    """Change numbers and silu in place: ExecuTorch would convert to fp32 for each in the graph."""
    import torch

    aten, graph = torch.ops.aten, module.graph
    numbers: dict[float, str] = {}
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, torch.Tensor) or value.dtype != torch.float16:
            continue
        with graph.inserting_before(node):
            if node.target == aten.silu.default:
                (x,) = node.args
                gate = graph.call_function(aten.sigmoid.default, (x,))
                node.replace_all_uses_with(graph.call_function(aten.mul.Tensor, (x, gate)))
                graph.erase_node(node)
            elif node.target in (aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor):
                node.args = tuple(a if not isinstance(a, int | float) else _constant(module, numbers, a) for a in node.args)
    graph.lint()
    module.recompile()


def _constant(module: Any, numbers: dict[float, str], number: float) -> Any:
    """A node that reads the number from a half-precision buffer."""
    import torch

    if not math.isfinite(number) or number not in numbers:
        numbers[number] = f"number_{len(numbers)}"
        module.register_buffer(numbers[number], torch.tensor([number], dtype=torch.float16))
    return module.graph.get_attr(numbers[number])
