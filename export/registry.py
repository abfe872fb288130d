"""The export targets. A new one is a package of its own (its record, its class) and a line here; backends are loaded on use."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.spec import TargetSpec

if TYPE_CHECKING:
    from snapgen_deploy.export.base import Target

# Key -> module and name of the record. A bare name means the variant of its record.
TARGETS: dict[str, str] = {
    "coreml": "snapgen_deploy.export.coreml.spec:COREML",
    "coreai": "snapgen_deploy.export.coreai.spec:COREAI",
    "executorch": "snapgen_deploy.export.executorch.spec:XNNPACK",
    "executorch:coreml": "snapgen_deploy.export.executorch.spec:EXECUTORCH_COREML",
    "executorch:vulkan": "snapgen_deploy.export.executorch.spec:VULKAN",
    "onnx": "snapgen_deploy.export.onnx.spec:ONNX",
    "onnx:cuda": "snapgen_deploy.export.cuda.spec:CUDA",
    "onnx:qnn": "snapgen_deploy.export.qnn.spec:QNN",
    "onnx:web": "snapgen_deploy.export.web.spec:WEB",
}


def specs() -> dict[str, TargetSpec]:
    """The records by the keys of `TARGETS`."""
    return {key: _loaded(place) for key, place in TARGETS.items()}


def target_keys() -> tuple[str, ...]:
    """The keys of all targets, `name` or `name:variant`."""
    return tuple(spec.key for spec in specs().values())


def find_spec(key: str) -> TargetSpec | None:
    """The record of `name` or `name:variant`; None for an unknown target."""
    name, _, _ = key.partition(":")
    found = specs()
    return found.get(key) or next((s for s in found.values() if s.name == name and s.key == key), None)


def spec_of(key: str) -> TargetSpec:
    """The record of `name` or `name:variant`.

    >>> spec_of("executorch").key
    'executorch:xnnpack'

    Raises:
        BadInput: if there is no such target; the message has the nearest names.
    """
    if (found := find_spec(key)) is not None:
        return found
    name, _, variant = key.partition(":")
    names = list(dict.fromkeys(spec.name for spec in specs().values()))
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1) or names
        raise BadInput(f"unknown target '{name}': did you mean {' or '.join(near)}?")
    variants = [spec.variant for spec in specs().values() if spec.name == name and spec.variant]
    fix = f"expected one of {', '.join(variants)}" if variants else f"it has none; write {name}"
    raise BadInput(f"target {name} has no variant '{variant}': {fix}")


def host_default() -> TargetSpec:
    """The record of the default target for this host."""
    return next(spec for spec in specs().values() if spec.runtime.host_default)


def target_of(key: str) -> tuple[Target, str]:
    """The target and the variant of `name` or `name:variant`.

    Raises:
        BadInput: if there is no such target.
    """
    spec = spec_of(key)
    target: Target = _loaded(spec.implementation)()
    return target, spec.variant


@cache
def _loaded(place: str) -> Any:
    """The object that `module:name` refers to."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
