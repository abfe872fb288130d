"""ONNX for onnxruntime-web: the files of `onnx:cpu`, each in one piece that a page can load.

Gates run them in native onnxruntime, whose kernels are those of onnxruntime-web's WebAssembly build.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Artifact, Component, Joined
from snapgen_deploy.export.onnx.target import Onnx
from snapgen_deploy.export.onnx.write import SPELLED
from snapgen_deploy.export.web.spec import WEB

MOST_BYTES = 2_000_000_000  # of a component: Chromium's ArrayBuffers end at 2^31 - 1 bytes, and WebAssembly's memory at 4 GiB


class OnnxWeb(Onnx):
    """ONNX files for browsers, run here by onnxruntime's CPU provider."""

    variants: tuple[str, ...] = WEB.variants
    precisions: tuple[str, ...] = WEB.precisions
    attention: str = SPELLED  # neither onnxruntime-web's WebAssembly nor its WebGPU was measured with operators

    def export(
        self, component: Component, variant: str, precision: str, directory: Path, options: Mapping[str, str]
    ) -> Artifact:
        """Write `<role>.onnx` into `directory`.

        Raises:
            BadInput: if the variant, precision or an option is not offered, or the file would be too large for a page.
            RuntimeError: if torch or onnx refuse the network; the message is one line.
        """
        made = super().export(component, variant, precision, directory, options)
        size = sum(file.stat().st_size for file in made.files)
        if size > MOST_BYTES or len(made.files) > 1:
            for file in made.files:
                file.unlink()
            raise BadInput(
                f"{component.role} -> onnx:{variant}: it has {size / 1e9:.2f} GB, and a page loads one file of at most "
                f"{MOST_BYTES / 1e9:g} GB; choose a narrower --width, or fewer bits"
            )
        return made

    def join(self, parts: Mapping[str, Artifact], directory: Path) -> Joined:
        """Never: a page loads one size.

        Raises:
            BadInput: always.
        """
        raise BadInput(f"onnx:web holds one picture size: {WEB.one_size}")
