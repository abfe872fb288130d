"""torch's operators, listed once.

Each decomposition of a graph (torch 2.13, `torch._export.utils`) lists the operators of all namespaces, twice, and asks the
dispatcher for all of them again at each of some 40 namespaces: 64 ms instead of 5, some twenty times in one lowering by
ExecuTorch. Operators come with imports.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from snapgen_deploy.export.shared.replaced import replaced


@contextmanager
def listed_once() -> Iterator[None]:
    """Within the block, in which nothing may be imported that has operators, the dispatcher is asked at most once."""
    from torch._export import utils

    name = "_materialize_cpp_cia_ops"
    with replaced(utils, name, functools.cache(getattr(utils, name))):
        yield
