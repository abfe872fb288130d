"""Fixes for operators of PyTorch that coremltools 9.0 converts to something else; `register_fixes` replaces the conversions."""

from __future__ import annotations

from typing import Any

GELU_MODES = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}


def register_fixes() -> None:
    """Register the fixes in this process; calling it again is a no-op."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op

    register_torch_op(override=True)(gelu)


def gelu(context: Any, node: Any) -> None:
    """`aten.gelu`. coremltools looks for `approximate` among the positional arguments, where torch.export never puts it.

    The tanh form of a network became the exact one, 1.6e-4 away.
    """
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.mil import Builder

    (approximate,) = (node.kwinputs or {}).get("approximate", ("none",))
    context.add(Builder.gelu(x=_get_inputs(context, node, expected=1)[0], mode=GELU_MODES[approximate], name=node.name))
