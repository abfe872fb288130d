"""Targets whose tools come with an optional extra of this package, and what to say where it is not installed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import util
from types import MappingProxyType

from snapgen_deploy.errors import BadInput


@dataclass(frozen=True)
class Extra:
    """`pip install 'snapgen-deploy[name]'`, and the modules that come with it."""

    name: str
    modules: tuple[str, ...]


# by the target's key
EXTRAS: Mapping[str, Extra] = MappingProxyType(
    {
        "coreai": Extra("coreai", ("coreai", "coreai_torch", "coreai_opt")),
        "onnx:qnn": Extra("qnn", ("onnxruntime_qnn",)),
    }
)


def missing_extra(target: str) -> str | None:
    """What a target's extra lacks here and how to install it; None where nothing is missing."""
    extra = EXTRAS.get(target)
    missing = [name for name in extra.modules if util.find_spec(name) is None] if extra else []
    if extra is None or not missing:
        return None
    return f"{target} needs an extra that is not installed ({', '.join(missing)}): pip install 'snapgen-deploy[{extra.name}]'"


def check_extra(target: str) -> None:
    """BadInput where the target's extra is not installed."""
    if (reason := missing_extra(target)) is not None:
        raise BadInput(reason)
