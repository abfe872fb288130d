"""Where this package's code is, a hash of it for cache keys, and versions of others: results of other code are not reused."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from importlib import metadata
from pathlib import Path

import snapgen_deploy
from snapgen_deploy.system.files import sha256_of


def package_root() -> Path:
    """The folder of the package `snapgen_deploy`."""
    return Path(snapgen_deploy.__file__).resolve().parent


@cache
def source_sha256(*rooms: str) -> str:
    """Hash of the Python files of the package, or of these folders of it, by their names and bytes."""
    root, digest = package_root(), hashlib.sha256()
    found: list[Path] = []
    for start in [root / room for room in rooms] or [root]:
        for folder, _, names in os.walk(start, followlinks=True):  # rooms of the package are links in a working tree
            found += [Path(folder, name) for name in names if name.endswith(".py")]
    for path in sorted(found):
        digest.update(f"{path.relative_to(root).as_posix()} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def version_of(package: str) -> str:
    """Version of an installed package, without importing it, or `absent`.

    >>> version_of("no-such-package")
    'absent'
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
