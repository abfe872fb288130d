from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from snapgen_deploy.export.base import Artifact, Component
from tests.another import in_another_process

Make = Callable[[], Component]
Exported = Callable[[Make, Mapping[str, str]], Artifact]


@pytest.fixture(scope="session")
def elsewhere(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Directory into which another process exported `mixed` for Core ML and ExecuTorch."""

    def export(directory: Path) -> None:
        from tests.export.graph_cases import export_both

        in_another_process(export_both, directory, printed=directory / "printed")
        assert (directory / "printed").read_text() == "", "libraries must not print"

    return once("elsewhere", export)


@pytest.fixture(scope="session")
def exported(once: Callable[[str, Callable[[Path], object]], Path]) -> Exported:
    """`exported(make, options)`: ONNX files, made once for the tests that only look at them."""

    def of(make: Make, options: Mapping[str, str]) -> Artifact:
        from snapgen_deploy.export.onnx.target import Onnx

        component = make()
        key = hashlib.sha256(str(sorted(options.items())).encode()).hexdigest()[:8]
        folder = once(f"onnx-{make.__name__}-{key}", lambda folder: Onnx().export(component, "cpu", "fp32", folder, options))
        return Artifact("onnx:cpu", component.role, folder / f"{component.role}.onnx", tuple(sorted(folder.iterdir())))

    return of
