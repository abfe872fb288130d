"""From a trained elastic diffusion transformer to a verified, app-ready model bundle."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "open_bundle"]

# From 1.29 on, onnxruntime's own packages tell its maker of every session: the file's name, the graph's, hashes of graph and
# weights (microsoft/onnxruntime pull request 27379). Nothing about an unpublished model leaves this machine unasked. It looks
# once, when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from snapgen_deploy.runtime.draw import open_for_drawing as open_bundle


def __getattr__(name: str) -> Any:
    """`open_bundle` is imported when it is asked for: the command line starts without numpy.

    Raises:
        NotInstalled: if the extra `runtime` is not installed, which it needs.
    """
    if name != "open_bundle":
        raise AttributeError(f"module 'snapgen_deploy' has no attribute '{name}'")
    from snapgen_deploy.extras import TO_DRAW, need

    need(TO_DRAW, "open_bundle")
    from snapgen_deploy.runtime.draw import open_for_drawing

    return open_for_drawing
