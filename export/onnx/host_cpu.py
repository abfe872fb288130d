"""This host's processor as a machine for files that are made for another one: what they compute, not where."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Runner
from snapgen_deploy.export.onnx.target import Onnx
from snapgen_deploy.export.spec import TargetSpec


class HostCpu:
    """onnxruntime's CPU provider. It computes most of an fp16 file in single precision."""

    name = key = "cpu"

    def unavailable(self, spec: TargetSpec) -> str | None:
        """None: onnxruntime is a dependency of this package, and runs every ONNX file here."""
        del spec
        return None

    def open(self, path: Path, *, threads: int, entry: str = "") -> Runner:
        """Load a saved file and return a function from named inputs to named outputs.

        Raises:
            BadInput: if the file cannot be loaded.
        """
        return Onnx().open(path, threads=threads, entry=entry)

    def versions(self) -> dict[str, str]:
        """Of onnxruntime."""
        return {"onnxruntime": metadata.version("onnxruntime")}


def host_cpu(processor: str) -> HostCpu:
    """The machine.

    Raises:
        BadInput: if a processor is named.
    """
    if processor:
        raise BadInput(f"machine cpu is this host's processor; got '{processor}' after it, expected nothing")
    return HostCpu()
