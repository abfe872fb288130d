#!/usr/bin/env bash
# executorch 1.4.1: the partitioner that XNNPACK's is built on keeps, for every partition before it merges them, the set of all
# partitions it leads to. Twice the layers make four times the entries, and nothing reads them: with sets that stay empty the
# program is the same. They have n (n - 1) / 2 entries for n nodes of a chain: 8 million for 4000.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 executorch==1.4.1 numpy==2.3.5
cd "$folder"
venv/bin/python -W ignore - 2>errors <<'PY' || { cat errors >&2; exit 1; }
import collections
from importlib.metadata import version
from types import SimpleNamespace

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.exir.backend.canonical_partitioners import group_partitioner
from torch import nn


class Empty(collections.defaultdict):
    """Gives an empty set for every key, and forgets it."""

    def __missing__(self, key):
        return set()


def lowered(layers, mapping):
    """(entries in the partitioner's sets, the program's bytes) of a chain of `layers` linear layers."""
    torch.manual_seed(0)
    network = nn.Sequential(*(m for _ in range(layers) for m in (nn.Linear(8, 8), nn.ReLU()))).eval()
    entries = []

    def proposed(self):
        usual = group_partitioner.collections
        group_partitioner.collections = SimpleNamespace(
            defaultdict=lambda kind: mapping(kind) if kind is set else collections.defaultdict(kind)
        )
        try:
            return propose(self)
        finally:
            group_partitioner.collections = usual

    def merged(self, by_id, assignment, users, leads_to, order):
        entries.append(sum(len(s) for s in leads_to.values()))
        return merge(self, by_id, assignment, users, leads_to, order)

    kind = group_partitioner.GroupBasedPartitioner
    propose, merge = kind.propose_partitions, kind._merge_partitions
    kind.propose_partitions, kind._merge_partitions = proposed, merged
    try:
        program = torch.export.export(network, (torch.randn(1, 8),))
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    finally:
        kind.propose_partitions, kind._merge_partitions = propose, merge
    return max(entries), edge.to_executorch().buffer


print(f"executorch {version('executorch')}, torch {torch.__version__.partition('+')[0]}")
counts = []
for layers in (32, 64, 128):
    entries, file = lowered(layers, collections.defaultdict)
    nothing, same = lowered(layers, Empty)
    print(f"{layers:4} layers: {entries:6} entries before partitions are merged; without them the program is the same: {file == same}")
    assert entries > 0 and nothing == 0 and file == same
    counts.append(entries)
assert counts[1] > 3 * counts[0] and counts[2] > 3 * counts[1], "it does not grow with the square any more"
PY
