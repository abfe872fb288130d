"""onnxscript's rewriting rules without those that traverse the whole graph for every node.

A rule whose pattern has several outputs lists all nodes of the graph before it compares the first (onnxscript 0.7). The time of
an export then grows with the square of the number of nodes, to twenty minutes for the 1.6B student. The only such rule merges
two slices into a split, and our networks have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from snapgen_deploy.export.shared.replaced import replaced


@contextmanager
def rules_of_linear_time() -> Iterator[None]:
    """Within the block, `torch.onnx.export(optimize=True)` uses only rules whose pattern has one output."""
    from onnxscript import rewriter

    name = "_DEFAULT_REWRITE_RULES"
    ours = tuple(r for r in getattr(rewriter, name) if r._target_pattern.has_single_output_node)
    with replaced(rewriter, name, ours):
        yield
