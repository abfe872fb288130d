"""Keeps one copy of the weights while a network is lowered for XNNPACK.

XNNPACK's lowering (ExecuTorch 1.4.1, `backends/xnnpack/operators/node_visitor.py`) copies every constant into bytes for the
file while the program still holds the original: twice the weights in the end. Here a constant whose bytes were copied unchanged
becomes a view of the copy, and its own memory is freed.
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
    """Make a tensor a view of `data`, if that has its bytes unchanged; else a no-op."""
    if constant.nbytes != len(data) or not constant.is_contiguous():
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")  # nothing writes: weights are frozen
        there = torch.frombuffer(data, dtype=constant.dtype).view(constant.shape)
    if torch.equal(constant, there):
        constant.data = there


@contextlib.contextmanager
def held_once() -> Iterator[None]:
    """Within the block, constants that XNNPACK's lowering has copied become views of the copy and must not be written to."""
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
