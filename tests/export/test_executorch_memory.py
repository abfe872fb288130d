"""What keeps ExecuTorch's lowering small and quick: dependencies in bits, constants held once, graphs traced once."""

from __future__ import annotations

import contextlib
import random
from types import SimpleNamespace

import pytest
import torch
from executorch.backends.xnnpack.partition.graphs import bilinear_2d, sdpa
from executorch.exir.backend.canonical_partitioners import group_partitioner
from torch import Tensor, nn
from torch.export import exported_program
from torch.fx.passes.infra import partitioner

from snapgen_deploy.export.executorch.constants import held_once, reread
from snapgen_deploy.export.executorch.partition import Downstreams, Unread, thrifty
from snapgen_deploy.export.executorch.passes import quick_passes
from snapgen_deploy.export.shared.replaced import replaced


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


@pytest.mark.parametrize(("seed", "size"), [(2, 40), (3, 170)])
def test_partitions_are_the_same_without_the_sets_that_are_not_read(monkeypatch, seed, size):
    """With a group of nodes, as a quantised layer is one, and an unsupported node between others."""

    class Most:
        def is_node_supported(self, modules, node):
            return node.op == "call_function" and node.name != f"add_{size // 2}"

    def proposed():
        graph = random_graph(seed, size)
        nodes = list(graph.graph.nodes)
        found = group_partitioner.GroupBasedPartitioner(
            graph, Most(), node_groups=[nodes[5:7], nodes[9:12]]
        ).propose_partitions()
        return [sorted(node.name for node in partition.nodes) for partition in found]

    original, kept = proposed(), []
    with thrifty():
        make = group_partitioner.collections.defaultdict
        watched = SimpleNamespace(defaultdict=lambda kind: kept.append(make(kind)) or kept[-1])
        monkeypatch.setattr(group_partitioner, "collections", watched)
        assert proposed() == original
        monkeypatch.undo()
    assert sum(map(len, original)) > size // 2
    assert [(type(found), len(found)) for found in kept if isinstance(found, Unread)] == [(Unread, 0)]


def test_what_was_replaced_is_put_back():
    from executorch.backends.xnnpack.operators.node_visitor import NodeVisitor

    def now():
        viewers = partitioner._DependencyViewer, group_partitioner._DependencyViewer
        return (*viewers, group_partitioner.collections, NodeVisitor.get_serialized_buffer_index)

    before = now()
    with pytest.raises(ZeroDivisionError), thrifty(), held_once():
        assert partitioner._DependencyViewer is group_partitioner._DependencyViewer is Downstreams
        raise ZeroDivisionError
    assert before == now()


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


class EveryPass(nn.Module):
    """A network of what XNNPACK's passes rewrite: convolution and ReLU, batch norm, a 1-D convolution, PReLU, a long join."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.row, self.bend = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv1d(4, 4, 1), nn.PReLU(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.relu(self.first(x)))
        return torch.cat([x, self.bend(self.row(x.flatten(2)).unflatten(2, x.shape[2:])), x, x, x, x])


class InPlace(nn.Module):
    """A network that changes a tensor it has made."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y[:, 0].add_(1)
        return torch.relu(y)


class WideSteps(nn.Module):
    """A network with a pooling that the partitioner asks to keep whole, and then does not take: its steps are too wide."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool2d(torch.relu(x), 2, stride=3)


def lowered(context: contextlib.AbstractContextManager[None], network: type[nn.Module]) -> tuple[bytes, int]:
    """The file of a network, and how often a graph was traced while it was lowered within `context`."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.exir.pass_base import ExportPass

    torch.manual_seed(0)
    program = torch.export.export(network().eval(), (torch.randn(1, 3, 9, 7),))
    counted, trace = [], ExportPass.call_submodule

    def counting(self: ExportPass, *args: object) -> object:
        counted.append(self)
        return trace(self, *args)

    with replaced(ExportPass, "call_submodule", counting), context:
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        return edge.to_executorch().buffer, len(counted)


def test_graphs_that_no_pass_changes_are_not_traced_again_and_give_the_same_file():
    (slow, all_traces), (quick, traces) = lowered(contextlib.nullcontext(), EveryPass), lowered(quick_passes(), EveryPass)
    assert slow == quick
    assert traces <= 0.7 * all_traces


@pytest.mark.parametrize(("network", "decomposed"), [(EveryPass, 1), (InPlace, 2), (WideSteps, 1)])
def test_graphs_are_decomposed_where_there_is_something_to_decompose(monkeypatch, network, decomposed):
    for patterns in (bilinear_2d, sdpa):
        patterns.get_graphs()  # which the first lowering of a process makes, by decompositions of their own
    called, decompose = [], exported_program._decompose_exported_program
    monkeypatch.setattr(exported_program, decompose.__name__, lambda *a, **k: called.append(1) or decompose(*a, **k))
    slow, _ = lowered(contextlib.nullcontext(), network)
    often = len(called)
    quick, _ = lowered(quick_passes(), network)
    assert slow == quick
    assert (often, len(called) - often) == (3, decomposed)
