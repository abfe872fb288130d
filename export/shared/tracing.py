"""What torch does too often where graphs are traced, decomposed and rewritten, and nothing runs.

Each decomposition (torch 2.13, `torch._export.utils`) lists the operators of all namespaces, up to twice, and asks the
dispatcher for all of them again at each of some 40 namespaces: 70 ms instead of 8. Operators come with imports.

It also overrides 600 operators for some ten dispatch keys each, twice. `OperatorBase.py_impl` builds the types of its
annotations anew for every one of them: 45 ms. An export decomposes up to twenty times.

Each change of a graph writes the Python code of its module and compiles it, 150 times in one lowering to XNNPACK: a seventh of
the time, for code that nobody calls, since graphs are interpreted. Each new node copies the whole history of the node that it
is made of (`torch.fx.traceback.NodeSource`), which grows with every pass; nothing changes what is written there. Each also
holds the text of the Python stack that it was made in, which no file of ours keeps.
"""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from snapgen_deploy.export.shared.replaced import replaced


def _override(operator: Any, key: Any, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """What a decorator of `py_impl` does for a dispatch key."""
    operator.py_kernels[key] = kernel
    operator._dispatch_cache.clear()
    return kernel


_GENERATED = ("_code", "_lineno_map", "_prologue_start")  # what `GraphModule.recompile` leaves beside `forward`
_OURS = ("__getattr__", "__reduce__")  # what a module's class has meanwhile


class _Later:
    """What `recompile` returns, generated when somebody looks at it."""

    def __init__(self, generate: Callable[[], Any]) -> None:
        self._generate = generate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generate(), name)


class _Forward:
    """The `forward` of a module's class, generated when somebody calls it or reads its signature."""

    def __init__(self, module: Any, generate: Callable[[Any], Any]) -> None:
        self._module, self._generate = weakref.ref(module), generate

    def __get__(self, instance: Any, owner: Any) -> Any:
        self._generate(self._module())
        return (owner if instance is None else instance).forward


def _when_needed(recompile: Callable[[Any], Any]) -> Callable[[Any], _Later]:
    """`GraphModule.recompile`, which does its work when the module is called, or its code is read.

    torch makes a class for every such module, so what is set there is this module's own.
    """
    from torch.fx.graph import _PyTreeCodeGen
    from torch.nn import Module

    def generate(module: Any) -> Any:
        for name in _OURS:
            if name in vars(type(module)):
                delattr(type(module), name)
        return recompile(module)

    def missing(module: Any, name: str) -> Any:
        if name in _GENERATED:
            generate(module)
            return vars(module)[name]
        return Module.__getattr__(module, name)

    def pickle(module: Any) -> Any:
        generate(module)
        return module.__reduce__()

    @functools.wraps(recompile)
    def later(module: Any) -> _Later:
        if isinstance(module._graph._codegen, _PyTreeCodeGen):
            module._in_spec, module._out_spec = module._graph._codegen.pytree_info[1:3]
        for name in _GENERATED:
            vars(module).pop(name, None)
        for name, ours in zip(("forward", *_OURS), (_Forward(module, generate), missing, pickle), strict=True):
            setattr(type(module), name, ours)
        module._recompile_submodules()
        return _Later(functools.partial(generate, module))

    return later


@contextmanager
def quick_tracing() -> Iterator[None]:
    """Within the block, torch's graphs are traced and changed without what nobody looks at. Graphs are the same.

    The dispatcher is asked for its operators at most once: nothing that brings operators may be imported in the block.
    """
    from torch import _ops
    from torch._C import DispatchKey
    from torch._export import utils
    from torch.fx import GraphModule, config, traceback

    listing, decorator = "_materialize_cpp_cia_ops", "py_impl"
    theirs = getattr(_ops.OperatorBase, decorator)

    def ours(operator: Any, key: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        plain = isinstance(key, DispatchKey) and key != DispatchKey.Python and key not in operator.py_kernels
        return functools.partial(_override, operator, key) if plain else theirs(operator, key)

    with (
        replaced(utils, listing, functools.cache(getattr(utils, listing))),
        replaced(_ops.OperatorBase, decorator, ours),
        replaced(GraphModule, "recompile", _when_needed(inspect.unwrap(GraphModule.recompile))),
        replaced(config, "do_not_emit_stack_traces", True),
        replaced(traceback, "copy", SimpleNamespace(copy=copy.copy, deepcopy=list)),  # of histories, which nothing changes
    ):
        yield
