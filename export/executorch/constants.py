"""Weights held once while a network is lowered for XNNPACK.

XNNPACK's lowering (ExecuTorch 1.4.1, `backends/xnnpack/operators/node_visitor.py`) copies every constant into bytes for the
file, while the program that it reads them from lives on: twice the weights at its end. Here a constant that was copied as it is
reads from those bytes from then on, and its own memory goes back.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from snapgen_deploy.export.shared.replaced import replaced


def reread(constant: Tensor, data: bytes) -> None:
    """Let a tensor read its numbers from `data`, where they lie there as they are; else leave it alone."""
    if constant.nbytes != len(data) or not constant.is_contiguous():
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")  # nothing writes: weights are frozen
        there = torch.frombuffer(data, dtype=constant.dtype).view(constant.shape)
    if torch.equal(constant, there):
        constant.data = there


@contextlib.contextmanager
def held_once() -> Iterator[None]:
    """While this lasts, constants that XNNPACK's lowering has copied read from the copy, so that nothing may write to them."""
    from executorch.backends.xnnpack.operators.node_visitor import NodeVisitor
    from executorch.backends.xnnpack.utils.utils import get_param_tensor, is_param_node

    original = NodeVisitor.get_serialized_buffer_index

    def serialise(self: Any, tensor: Any, xnn_graph: Any, *args: Any, **kwargs: Any) -> int:
        index: int = original(self, tensor, xnn_graph, *args, **kwargs)
        if index and is_param_node(self.exported_program, tensor):
            store = self._named_data_store
            place = store.key_to_buffer_idx[xnn_graph.constant_data[index].named_key]
            reread(get_param_tensor(self.exported_program, tensor), store.buffers[place])
        return index

    with replaced(NodeVisitor, "get_serialized_buffer_index", serialise):
        yield
