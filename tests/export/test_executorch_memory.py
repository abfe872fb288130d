"""What keeps ExecuTorch's lowering small: dependencies in bits, and constants that are held once."""

from __future__ import annotations

import random

import pytest
import torch
from executorch.exir.backend.canonical_partitioners import group_partitioner
from torch.fx.passes.infra import partitioner

from snapgen_deploy.export.executorch.constants import held_once, reread
from snapgen_deploy.export.executorch.partition import Downstreams, thrifty


def random_graph(seed: int, size: int) -> torch.fx.GraphModule:
    chosen, graph = random.Random(seed), torch.fx.Graph()
    nodes = [graph.placeholder("x"), graph.placeholder("y")]
    for _ in range(size):
        nodes.append(graph.call_function(torch.add, tuple(chosen.choices(nodes, k=2))))
    graph.output(tuple(chosen.sample(nodes, 2)))
    return torch.fx.GraphModule(torch.nn.Module(), graph)


@pytest.mark.parametrize(("seed", "size"), [(0, 1), (1, 9), (2, 40), (3, 170)])
@pytest.mark.parametrize("module", [partitioner, group_partitioner])
def test_the_same_nodes_are_behind_a_node_as_the_originals_say(module, seed, size):
    graph = random_graph(seed, size)
    original, ours = module._DependencyViewer(graph), Downstreams(graph)
    for node in graph.graph.nodes:
        found = ours.downstreams_of(node)
        assert set(found) == original.downstreams_of(node)
        assert found == sorted(found, key=list(graph.graph.nodes).index)
    assert ours.downstreams_of(next(iter(random_graph(9, 1).graph.nodes))) == []


def test_what_was_replaced_is_put_back():
    from executorch.backends.xnnpack.operators.node_visitor import NodeVisitor

    before = (partitioner._DependencyViewer, group_partitioner._DependencyViewer, NodeVisitor.get_serialized_buffer_index)
    with pytest.raises(ZeroDivisionError), thrifty(), held_once():
        assert partitioner._DependencyViewer is group_partitioner._DependencyViewer is Downstreams
        raise ZeroDivisionError
    assert before == (
        partitioner._DependencyViewer, group_partitioner._DependencyViewer, NodeVisitor.get_serialized_buffer_index,
    )  # fmt: skip


def test_a_constant_reads_from_its_copy_only_where_that_is_equal():
    values = torch.randn(3, 5)
    for data, shared in ((values.numpy().tobytes(), True), (torch.zeros(3, 5).numpy().tobytes(), False), (b"short", False)):
        constant = values.clone()
        before = constant.data_ptr()
        reread(constant, data)
        assert torch.equal(constant, values)
        assert (constant.data_ptr() != before) is shared
    turned = values.clone().T
    reread(turned, turned.contiguous().numpy().tobytes())
    assert torch.equal(turned, values.T)
    assert not turned.is_contiguous()
