"""Work that another process does, which orders sets of texts in another way: what it writes must have the same bytes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from snapgen_deploy.system.child import run_in_child

T = TypeVar("T")


def in_another_process(function: Callable[..., T], *args: Any, printed: Path) -> T:
    """The result of `function(*args)` there; what it printed is left in the file `printed`."""
    (seed, result), _ = run_in_child("another process", _there, function, args, printed)
    assert seed != hash("a text")
    return result


def _there(function: Callable[..., T], args: tuple[Any, ...], printed: Path) -> tuple[int, T]:
    with printed.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    result = function(*args)
    sys.stdout.flush()
    sys.stderr.flush()
    return hash("a text"), result
