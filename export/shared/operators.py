"""torch's operators, listed once and overridden without detours: the fixed cost of each decomposition of a graph.

Each decomposition (torch 2.13, `torch._export.utils`) lists the operators of all namespaces, up to twice, and asks the
dispatcher for all of them again at each of some 40 namespaces: 70 ms instead of 8. Operators come with imports.

It also overrides 600 operators for some ten dispatch keys each, twice. `OperatorBase.py_impl` builds the types of its
annotations anew for every one of them: 45 ms. An export decomposes up to twenty times.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from snapgen_deploy.export.shared.replaced import replaced


def _override(operator: Any, key: Any, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """What a decorator of `py_impl` does for a dispatch key."""
    operator.py_kernels[key] = kernel
    operator._dispatch_cache.clear()
    return kernel


@contextmanager
def quick_decompositions() -> Iterator[None]:
    """Within the block, in which nothing may be imported that has operators, the dispatcher is asked at most once."""
    from torch import _ops
    from torch._C import DispatchKey
    from torch._export import utils

    listing, decorator = "_materialize_cpp_cia_ops", "py_impl"
    theirs = getattr(_ops.OperatorBase, decorator)

    def ours(operator: Any, key: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        plain = isinstance(key, DispatchKey) and key != DispatchKey.Python and key not in operator.py_kernels
        return functools.partial(_override, operator, key) if plain else theirs(operator, key)

    with replaced(utils, listing, functools.cache(getattr(utils, listing))), replaced(_ops.OperatorBase, decorator, ours):
        yield
