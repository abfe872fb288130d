"""Classes of a user's own packages, named on the command line: of installed distributions, and of nothing else.

Nothing is imported before it is known whose it is: a package counts where a distribution that Python's environment knows lists
it, or has it in the project that it is an editable install of. What lies in the working directory does not, unless it is such
a project.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.documents import shown
from snapgen_deploy.system.quiet import quiet, reason_of


@dataclass(frozen=True)
class InstalledClass:
    """A class, the distribution that has it, and the files that it was read from."""

    kind: type[Any]
    distribution: str
    version: str
    file: Path  # that defines it
    sources: tuple[Path, ...]  # of its whole package, that file among them


@dataclass(frozen=True)
class _Owned:
    """A package or module at the top level, and whose it is."""

    distribution: metadata.Distribution
    places: tuple[Path, ...]  # its folder, or its file


def installed_class(name: str) -> InstalledClass:
    """The class `package.module:Class`.

    Raises:
        BadInput: if it is not named so, its package is of no installed distribution, cannot be imported, or has no such class.
    """
    module, _, kind = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), kind)):
        raise BadInput(f"--module: got {shown(name)}, expected package.module:Class")
    begin = f"--module {name}: "
    _owner(module, begin)  # before anything of it runs
    try:
        with quiet():
            found = getattr(importlib.import_module(module), kind, None)
    except (Exception, SystemExit) as error:  # whatever a user's module raises
        raise BadInput(f"{begin}{module} cannot be imported ({reason_of(error)})") from None
    if not isinstance(found, type):
        raise BadInput(f"{begin}{module} has no class {kind}")
    owned = _owner(found.__module__, begin)  # it may come from elsewhere
    file = Path(getattr(sys.modules.get(found.__module__), "__file__", None) or "").resolve()
    if not any(file.is_relative_to(place) for place in owned.places):
        raise BadInput(f"{begin}{file} is not a file of {owned.distribution.name}")
    sources = {path for place in owned.places for path in (place.rglob("*.py") if place.is_dir() else (place,))}
    return InstalledClass(found, owned.distribution.name, owned.distribution.version, file, tuple(sorted(sources | {file})))


def _owner(module: str, begin: str) -> _Owned:
    """Whose the package of a module is.

    Raises:
        BadInput: if there is no such package, or no installed distribution has it.
    """
    top = module.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)  # of a name without a dot nothing is imported
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise BadInput(f"{begin}there is no package {top}; install yours, for example with `pip install -e FOLDER`")
    files = [spec.origin] if spec.has_location and spec.origin else []  # the origin of a built-in module is no path
    given = tuple(Path(place) for place in (spec.submodule_search_locations or files))
    owners = [next((d for d in metadata.distributions() if _has(d, top, place)), None) for place in given]
    distribution = owners[0] if owners else None
    if distribution is None or None in owners:
        raise BadInput(
            f"{begin}{given[0] if given else top} is of no installed distribution; "
            "install your package, for example with `pip install -e FOLDER`"
        )
    return _Owned(distribution, tuple(place.resolve() for place in given))


def _has(distribution: metadata.Distribution, top: str, place: Path) -> bool:
    """Whether a distribution has the package at a place; one whose record lies in the working directory has none."""
    root = Path(str(distribution.locate_file(""))).resolve()
    if root == Path.cwd().resolve():
        return False
    if (root / place.name).resolve() == place.resolve() and place.name.partition(".")[0] == top:
        listed = (distribution.read_text("top_level.txt") or "").split()
        record = f"\n{distribution.read_text('RECORD') or ''}"
        return top in listed or f"\n{top}/" in record or f"\n{place.name}," in record
    project = _project_of(distribution)
    return project is not None and place.resolve().is_relative_to(project)


def _project_of(distribution: metadata.Distribution) -> Path | None:
    """The folder of the project that a distribution is an editable install of."""
    try:
        told = json.loads(distribution.read_text("direct_url.json") or "{}")
        url, editable = urlsplit(str(told.get("url", ""))), told.get("dir_info", {}).get("editable", False)
    except (ValueError, AttributeError):
        return None
    return Path(unquote(url.path)).resolve() if editable is True and url.scheme == "file" and url.path else None
