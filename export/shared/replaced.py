"""Temporarily replaces an attribute: how the exporters patch libraries that are wrong, slow or take too much memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replaced(owner: Any, name: str, ours: Any) -> Iterator[None]:
    """Within the block, a module or class has another attribute; an inherited attribute is inherited again afterwards."""
    inherited = name not in vars(owner)
    own = None if inherited else vars(owner)[name]  # not by getattr, which would lose that a method is static
    setattr(owner, name, ours)
    try:
        yield
    finally:
        if inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
