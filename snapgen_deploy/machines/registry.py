"""The machines that `verify --on` and `export --check-on` know, behind one interface."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Protocol

from snapgen_deploy.errors import BadInput, nearest
from snapgen_deploy.export.base import Runner
from snapgen_deploy.export.spec import TargetSpec


class OtherMachine(Protocol):
    """A machine with one kind of processor. Which targets' files it runs, their records say (`TargetSpec.machines`)."""

    name: str  # as in `TargetSpec.machines`
    key: str  # `name:processor`

    def unavailable(self, spec: TargetSpec) -> str | None:
        """Why it cannot run a target's files here, or None if it can."""
        ...

    def open(self, path: Path, *, threads: int, entry: str = "") -> Runner:
        """Load a saved file there and return a function from named inputs to named outputs.

        Raises:
            BadInput: if the file cannot be loaded.
            ChildDied: if the machine's process ends.
        """
        ...

    def versions(self) -> dict[str, str]:
        """Versions of what runs files there; {} if it cannot be used."""
        ...


# Name -> module and name of a function from a processor's name ("" for the default one) to the machine.
MACHINES: Mapping[str, str] = {
    "arm64": "snapgen_deploy.machines.arm64.machine:arm64",
    "cpu": "snapgen_deploy.export.onnx.host_cpu:host_cpu",
}


def machine_of(text: str) -> OtherMachine:
    """The machine of `name` or `name:processor`.

    Raises:
        BadInput: if there is none.
    """
    name, _, processor = text.partition(":")
    if name not in MACHINES:
        raise BadInput(f"unknown machine '{name}': expected {', '.join(MACHINES)}{nearest(name, MACHINES)}")
    module, _, function = MACHINES[name].partition(":")
    found: OtherMachine = getattr(import_module(module), function)(processor)
    return found


def obstacle(machine: OtherMachine, spec: TargetSpec) -> str | None:
    """Why a machine cannot run a target's files, or None if it can."""
    if machine.name not in spec.machines:
        return f"{machine.name} here runs no files of {spec.key}"
    return machine.unavailable(spec)
