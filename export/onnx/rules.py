"""onnxscript's rewriting rules without those that look at the whole graph once for every node.

A rule whose pattern has several outputs lists all nodes of the graph before it compares the first (onnxscript 0.7): with it the
time of an export grows with the square of the number of nodes, to twenty minutes for the 1.6B student. The one such rule merges
two slices into a split, and finds none in our networks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from snapgen_deploy.export.shared.replaced import replaced


@contextmanager
def rules_of_linear_time() -> Iterator[None]:
    """While this lasts, `torch.onnx.export(optimize=True)` takes only rules whose pattern has one output."""
    from onnxscript import rewriter

    name = "_DEFAULT_REWRITE_RULES"
    ours = tuple(r for r in getattr(rewriter, name) if r._target_pattern.has_single_output_node)
    with replaced(rewriter, name, ours):
        yield
