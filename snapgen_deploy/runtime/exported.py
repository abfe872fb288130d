"""Holds a bundle's file against its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.files import sha256_of


def check_exported(path: Path, entry: Mapping[str, Any]) -> None:
    """Check that a file is the exported one; `entry` is the manifest's.

    Raises:
        BadInput: if it is not, or cannot be read.
    """
    try:
        found = sha256_of(path)
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror})") from None
    if found != entry["sha256"]:
        raise BadInput(f"{path} is not the exported file: its SHA-256 is another one than in the manifest")
