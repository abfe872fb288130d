"""Functions of a user's own, named on the command line."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.quiet import reason_of

EXPECTED = "expected FILE.py:FUNCTION, or MODULE:FUNCTION of an installed module"


def function_of(name: str, option: str, takes: str, load: Callable[[str], ModuleType] | None = None) -> Callable[..., Any]:
    """The function of `file.py:function` or of an installed `module:function`, whose module `load` imports.

    `takes` says for a message what is expected of it, such as `a function of prompts`.

    Raises:
        BadInput: if there is none, or its module cannot be imported.
    """
    module, colon, function = name.rpartition(":")
    try:
        found = getattr((load or module_of)(module), function) if colon else None
    except BadInput as error:
        raise BadInput(f"{option} {name}: {error}") from None
    except Exception as error:  # whatever a user's module raises
        raise BadInput(f"{option} {name}: cannot be imported ({reason_of(error)}); {EXPECTED}") from None
    if not callable(found):
        raise BadInput(f"{option} {name}: {EXPECTED}, {takes}")
    made: Callable[..., Any] = found
    return made


def module_of(name: str) -> ModuleType:
    """An installed module, or that of a file; the working directory is not searched for modules.

    Raises:
        BadInput: if there is no such file.
    """
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise BadInput(f"there is no file {name}; {EXPECTED}")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made
