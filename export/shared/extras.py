"""Checks that the optional extra with a target's tools is installed."""

from __future__ import annotations

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.registry import spec_of


def missing_extra(target: str) -> str | None:
    """Which modules of a target's extra are missing and how to install them; None if nothing is missing."""
    extra = spec_of(target).extra
    if extra is None or not (missing := extra.missing):
        return None
    return f"{target} needs an extra that is not installed ({', '.join(missing)}): pip install 'snapgen-deploy[{extra.name}]'"


def check_extra(target: str) -> None:
    """Check that the target's extra is installed.

    Raises:
        BadInput: if it is not; the message has the command that installs it.
    """
    if (reason := missing_extra(target)) is not None:
        raise BadInput(reason)
