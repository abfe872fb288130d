"""The export targets by name. A new target is one module and one line here; backends load only when used."""

from __future__ import annotations

from importlib import import_module

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Target

# name, or name:variant where a variant has a class of its own -> module and class
TARGETS: dict[str, tuple[str, str]] = {
    "coreai": ("snapgen_deploy.export.coreai.target", "CoreAI"),
    "coreml": ("snapgen_deploy.export.coreml.target", "CoreML"),
    "executorch": ("snapgen_deploy.export.executorch.target", "ExecuTorch"),
    "executorch:coreml": ("snapgen_deploy.export.executorch.coreml", "ExecuTorchCoreML"),
    "executorch:vulkan": ("snapgen_deploy.export.executorch.vulkan", "ExecuTorchVulkan"),
    "onnx": ("snapgen_deploy.export.onnx.target", "Onnx"),
    "onnx:qnn": ("snapgen_deploy.export.qnn.target", "OnnxQnn"),
}


def target_of(key: str) -> tuple[Target, str]:
    """The target and the variant of `name` or `name:variant`; a bare name takes the target's first variant."""
    name, _, variant = key.partition(":")
    if name not in TARGETS:
        raise BadInput(f"unknown target '{name}': expected one of {', '.join(TARGETS)}")
    module, cls = TARGETS.get(key, TARGETS[name])
    target: Target = getattr(import_module(module), cls)()
    if variant and variant not in target.variants:
        known = (*target.variants, *(k.partition(":")[2] for k in TARGETS if k.startswith(f"{name}:")))
        raise BadInput(f"target {name} has no variant '{variant}': expected one of {', '.join(known) or 'none'}")
    return target, variant or (target.variants[0] if target.variants else "")
