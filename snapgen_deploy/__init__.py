"""From a trained elastic diffusion transformer to a verified, app-ready model bundle."""

import os

__version__ = "0.1.0"

# From 1.29 on, onnxruntime's own packages tell its maker of every session: the file's name, the graph's, hashes of graph and
# weights (microsoft/onnxruntime pull request 27379). Nothing about an unpublished model leaves this machine unasked. It looks
# once, when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
