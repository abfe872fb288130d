"""onnxruntime sessions on Qualcomm's Hexagon NPU (HTP), compiled here and run on the x86 emulation that the wheel brings.

Everything here runs in a companion process, and imports neither torch nor heavy modules of this package, so that it starts
quickly.

- Plug-in provider, its options and the context binary:
  https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html
- `htp_graph_finalization_optimization_mode`: with 1, onnxruntime-qnn 2.7.0 gave a decoder in 16-bit activations that is wrong
  from its first nearest upsampling on (relative error 1.0); with 0, 2 and 3 it is right (0.025). 3 is what is meant for
  preparing on another machine.
- Several graphs in one binary with shared weights (`enable_htp_weight_sharing`, `ep.share_ep_contexts`) compile, but the
  emulation crashes with SIGSEGV when it loads such a binary, so none is made here.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from snapgen_deploy.export.qnn.spec import UNIT
from snapgen_deploy.system.quiet import first_line

PROVIDER = "QNNExecutionProvider"
OPTIMIZATION = "3"
REFUSED = re.compile(r"\{ name: (?P<name>[^,}]*), type: (?P<op>[^ }]*) \}")

_sessions: dict[str, Any] = {}


@dataclass(frozen=True)
class Chip:
    """The phone's chip, for the compiler: Qualcomm's number of the SoC, and the NPU's architecture."""

    soc_model: str
    htp_arch: str


@dataclass(frozen=True)
class Compiled:
    """The result of a compilation besides its files."""

    seconds: float
    nodes: dict[str, int]  # unit -> nodes of onnxruntime's graph, as it assigned them


def compile_context(folder: str, graph: str, context: str, chip: Chip) -> Compiled:
    """Compile a graph to the small .onnx file `context`, which refers to a binary beside it; both are paths within `folder`.

    The provider names its graph after the given path of the model, so absolute paths would change the bytes.

    Raises:
        RuntimeError: if the NPU does not take every node; the process prints the others (`refused`).
    """
    os.chdir(folder)
    options = _options()
    for name, value in (
        ("session.record_ep_graph_assignment_info", "1"),
        ("ep.context_enable", "1"),
        ("ep.context_embed_mode", "0"),
        ("ep.context_file_path", context),
    ):
        options.add_session_config_entry(name, value)
    start = time.monotonic()
    session = _open(graph, options, chip)
    seconds = time.monotonic() - start
    nodes: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        nodes[UNIT if part.ep_name == PROVIDER else part.ep_name] += len(part.get_nodes())
    return Compiled(seconds, dict(sorted(nodes.items())))


def load(path: str, chip: Chip) -> dict[str, tuple[str, list[int]]]:
    """Open a context, or compile a graph, for `run`; returns its inputs by name: onnxruntime's type and shape."""
    session = _open(path, _options(), chip)
    _sessions[path] = session
    return {i.name: (i.type, list(i.shape)) for i in session.get_inputs()}


def run(path: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of a loaded session by name."""
    session = _sessions[path]
    names = [o.name for o in session.get_outputs()]
    try:
        values = session.run(names, dict(inputs))
    except Exception as error:
        raise RuntimeError(first_line(error)) from None
    return dict(zip(names, values, strict=True))


def refused(printed: str) -> list[tuple[str, str]]:
    """Names and operators of the nodes that the provider reported as unsupported, sorted."""
    lines = [line for line in printed.splitlines() if "Unsupported nodes in QNN EP" in line]
    return sorted({(m["name"].strip(), m["op"].strip()) for line in lines for m in REFUSED.finditer(line)})


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; unsupported nodes are reported at this level
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _open(path: str, options: Any, chip: Chip) -> Any:
    """A session on the NPU; onnxruntime's exceptions become one RuntimeError, since they cannot be pickled."""
    import onnxruntime
    import onnxruntime_qnn

    if not any(d.ep_name == PROVIDER for d in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == PROVIDER]
    npus = [d for d in devices if d.device.type == onnxruntime.OrtHardwareDeviceType.NPU] or devices
    settings = {
        "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
        "htp_graph_finalization_optimization_mode": OPTIMIZATION,
        "soc_model": chip.soc_model,
        "htp_arch": chip.htp_arch,
    }
    options.add_provider_for_devices(npus[:1], settings)
    try:
        return onnxruntime.InferenceSession(path, options)
    except Exception as error:
        raise RuntimeError(first_line(error)) from None


def library_version() -> str:
    """Version of Qualcomm's compiler inside the installed onnxruntime-qnn."""
    import onnxruntime_qnn

    return str(onnxruntime_qnn.build_and_package_info.qnn_version)
