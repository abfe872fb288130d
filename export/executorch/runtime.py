"""ExecuTorch's runtime, which this module imports without the exporter."""

from __future__ import annotations

from snapgen_deploy.export.executorch.exporter import without_exporter

with without_exporter():
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

__all__ = ["Runtime", "portable_lib"]
