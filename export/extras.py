"""Targets whose tools come with an optional extra of this package, and what to say where it is not installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import util
from types import MappingProxyType

from snapgen_deploy.errors import BadInput

# target -> modules that its extra, of the same name, installs
EXTRAS: Mapping[str, tuple[str, ...]] = MappingProxyType({"coreai": ("coreai", "coreai_torch", "coreai_opt")})


def missing_extra(target: str) -> str | None:
    """What a target's extra lacks here and how to install it; None where nothing is missing."""
    missing = [name for name in EXTRAS.get(target, ()) if util.find_spec(name) is None]
    if not missing:
        return None
    return f"{target} needs an extra that is not installed ({', '.join(missing)}): pip install 'snapgen-deploy[{target}]'"


def check_extra(target: str) -> None:
    """BadInput where the target's extra is not installed."""
    if (reason := missing_extra(target)) is not None:
        raise BadInput(reason)
