"""Graph modules whose code is written when somebody looks at it."""

from __future__ import annotations

import contextlib
import copy
import inspect
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import fx

from snapgen_deploy.export.shared.tracing import quick_tracing
from tests.export.onnx_cases import decoder


def twice() -> fx.GraphModule:
    return fx.symbolic_trace(lambda x: x * 2)


def halved(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph, changed: x · 2 becomes x · 0.5."""
    (product,) = (n for n in module.graph.nodes if n.op == "call_function")
    product.args = (product.args[0], 0.5)
    module.recompile()
    return module


@pytest.mark.parametrize(
    "look",
    [
        lambda m: m(torch.ones(2)).tolist(),
        lambda m: m.forward(torch.ones(2)).tolist(),
        lambda m: m.code,
        lambda m: str(m),
        lambda m: m.print_readable(print_output=False),
        lambda m: m.recompile().src,
        lambda m: copy.deepcopy(m)(torch.ones(2)).tolist(),
        lambda m: pickle.loads(pickle.dumps(m))(torch.ones(2)).tolist(),
        lambda m: fx.Interpreter(m).run(torch.ones(2)).tolist(),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_whoever_looks_sees_the_newest_graph(look: Callable[[fx.GraphModule], object], inside: bool) -> None:
    with contextlib.ExitStack() as block:
        block.enter_context(quick_tracing())
        module = halved(twice())
        if inside:
            seen = look(module), look(module)
    if not inside:
        seen = look(module), look(module)
    assert seen[0] == seen[1]
    assert seen[0] == [0.5, 0.5] or "0.5" in str(seen[0])


def test_arguments_have_their_names() -> None:
    with quick_tracing():
        assert list(inspect.signature(halved(twice()).forward).parameters) == ["x"]


def test_a_block_in_a_block_generates_as_well() -> None:
    with quick_tracing(), quick_tracing():
        module = halved(twice())
    assert "0.5" in module.code


def test_hooks_run_once_and_errors_reach_the_caller() -> None:
    called = []
    with quick_tracing():
        module = twice()
        module.register_forward_hook(lambda *_: called.append(1))
        module(torch.ones(1))
        with pytest.raises(TypeError):
            module()
    assert called == [1]


def test_an_export_hardly_writes_code(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    real = fx.Graph.python_code
    monkeypatch.setattr(fx.Graph, "python_code", lambda *a, **k: written.append(1) or real(*a, **k))
    component = decoder()
    with quick_tracing():
        program = torch.export.export(component.module, component.example, strict=False).run_decompositions()
    assert len(program.graph.nodes) > 20
    assert len(written) <= 3, "torch alone writes it 18 times"
