"""Modules of ExecuTorch without the packages around them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType

_PACKAGES = ("executorch.exir", "executorch.backends.xnnpack")


@contextlib.contextmanager
def without_exporter() -> Iterator[None]:
    """Within the block, modules are imported without what their packages import, unless these are there already.

    ExecuTorch's runtime needs one class of warnings of the exporter, and who reads a program needs its schemas (1.4.1). Python
    would import the packages whole, and torch's compiler with them: 3 s in each process that only reads or runs a file. Whoever
    imports a package afterwards gets all of it, and of these modules the same (by `from PACKAGE import`, as ExecuTorch does:
    they are no attributes of a package that came after them).
    """
    import executorch.backends

    empty = [name for name in _PACKAGES if name not in sys.modules]
    for name in empty:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [f"{place}/{name.partition('.')[2].replace('.', '/')}" for place in executorch.__path__]
    try:
        yield
    finally:
        for name in empty:
            del sys.modules[name]
