"""Dependencies of a graph's nodes as bit masks instead of sets, for the partitioners of torch and ExecuTorch.

torch 2.13 (`fx/passes/infra/partitioner.py`) and ExecuTorch 1.4.1 (`canonical_partitioners/group_partitioner.py`) each keep,
for every node of a graph, the set of all nodes downstream, and ExecuTorch also of all upstream: thousands of nodes, squared.
For snapgenpp small at 1024 x 1024 these sets took 3.3 GB, twice the weights. One bit per pair of nodes is enough.

ExecuTorch's also keeps, for every partition, the set of all partitions that it leads to, and reads none of them: `Unread`.

XNNPACK's partitioner also reads the source of every function that it is called from, to find out whether to advise another call
than ours.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from snapgen_deploy.export.shared.replaced import replaced
from snapgen_deploy.export.shared.tracing import quick_tracing


class Downstreams:
    """The nodes downstream of each node of a graph: its users, their users, and so on."""

    def __init__(self, graph_module: torch.fx.GraphModule) -> None:
        self.nodes = list(graph_module.graph.nodes)
        self.number = {node: i for i, node in enumerate(self.nodes)}
        self.masks = [0] * len(self.nodes)  # bit j of mask i: node j is downstream of node i
        for i in reversed(range(len(self.nodes))):
            for user in self.nodes[i].users:
                self.masks[i] |= self.masks[self.number[user]] | 1 << self.number[user]

    def downstreams_of(self, node: Node) -> list[Node]:
        """The nodes downstream, in the graph's order; none for a node that is not in the graph."""
        mask = self.masks[self.number[node]] if node in self.number else 0
        packed = np.frombuffer(mask.to_bytes((len(self.nodes) + 7) // 8, "little"), np.uint8)
        return [self.nodes[i] for i in np.flatnonzero(np.unpackbits(packed, bitorder="little"))]


class Unread(dict[int, set[int]]):
    """A mapping to sets that keeps nothing of what is put into them."""

    def __missing__(self, key: int) -> set[int]:
        """An empty set, which is forgotten."""
        return set()


def _mapping(kind: type) -> Any:
    """In place of `collections.defaultdict`, which the partitioner calls with `set` for this purpose only."""
    return Unread() if kind is set else defaultdict(kind)


@contextlib.contextmanager
def thrifty() -> Iterator[None]:
    """Within the block, partitioners use `Downstreams` and look for no advice, and graphs are traced by `quick_tracing`."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir.backend.canonical_partitioners import group_partitioner
    from torch.fx.passes.infra import partitioner

    name = "_DependencyViewer"
    with (
        replaced(partitioner, name, Downstreams),
        replaced(group_partitioner, name, Downstreams),
        replaced(group_partitioner, "collections", SimpleNamespace(defaultdict=_mapping)),
        replaced(XnnpackPartitioner, "_check_if_called_from_to_backend", lambda partitioner: False),
        quick_tracing(),
    ):
        yield
