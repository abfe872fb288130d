"""What to say where an optional extra of this package, which a target's tools come with, is not installed."""

from __future__ import annotations

from importlib import util

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.registry import spec_of


def missing_extra(target: str) -> str | None:
    """What a target's extra lacks here and how to install it; None where nothing is missing."""
    extra = spec_of(target).extra
    missing = [name for name in extra.modules if util.find_spec(name) is None] if extra else []
    if extra is None or not missing:
        return None
    return f"{target} needs an extra that is not installed ({', '.join(missing)}): pip install 'snapgen-deploy[{extra.name}]'"


def check_extra(target: str) -> None:
    """BadInput where the target's extra is not installed."""
    if (reason := missing_extra(target)) is not None:
        raise BadInput(reason)
