"""The export targets. A new one is a module of its own (its record, its class) and a line here; backends load when used."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.spec import TargetSpec

if TYPE_CHECKING:
    from snapgen_deploy.export.base import Target

# Key -> module and name of the record. A bare name means the variant that its record has.
TARGETS: dict[str, str] = {
    "coreml": "snapgen_deploy.export.coreml.spec:COREML",
    "coreai": "snapgen_deploy.export.coreai.spec:COREAI",
    "executorch": "snapgen_deploy.export.executorch.spec:XNNPACK",
    "executorch:coreml": "snapgen_deploy.export.executorch.spec:EXECUTORCH_COREML",
    "executorch:vulkan": "snapgen_deploy.export.executorch.spec:VULKAN",
    "onnx": "snapgen_deploy.export.onnx.spec:ONNX",
    "onnx:qnn": "snapgen_deploy.export.qnn.spec:QNN",
}


def specs() -> dict[str, TargetSpec]:
    """The records by the keys of `TARGETS`."""
    return {key: _loaded(place) for key, place in TARGETS.items()}


def target_keys() -> tuple[str, ...]:
    """Every `name` or `name:variant` that exists."""
    return tuple(spec.key for spec in specs().values())


def find_spec(key: str) -> TargetSpec | None:
    """The record of `name` or `name:variant`; None for a target that is not known."""
    name, _, _ = key.partition(":")
    found = specs()
    return found.get(key) or next((s for s in found.values() if s.name == name and s.key == key), None)


def spec_of(key: str) -> TargetSpec:
    """The record of `name` or `name:variant`; BadInput, with what is nearest, for a target that is not known."""
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
    """The record of the target that stands for this host where none was named."""
    return next(spec for spec in specs().values() if spec.runtime.host_default)


def target_of(key: str) -> tuple[Target, str]:
    """The target and the variant of `name` or `name:variant`; BadInput for one that is not known."""
    spec = spec_of(key)
    target: Target = _loaded(spec.implementation)()
    return target, spec.variant


@cache
def _loaded(place: str) -> Any:
    """What `module:name` names."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
