"""onnxruntime sessions on Qualcomm's Hexagon NPU (HTP), compiled here and run on the x86 emulation that the wheel brings.

Everything here runs in a companion process, and imports neither torch nor this package's heavy parts, so that it starts soon.

- Plug-in provider, its options and the context binary:
  https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html
- `htp_graph_finalization_optimization_mode`: with 1, onnxruntime-qnn 2.7.0 gave a decoder in 16-bit activations that is wrong
  from its first nearest upsampling on (relative error 1.0); with 0, 2 and 3 it is right (0.025). 3 is what is meant for
  preparing on another machine.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PROVIDER = "QNNExecutionProvider"
UNIT = "HTP"  # what the provider's NPU is called in placements
OPTIMIZATION = "3"
REFUSED = re.compile(r"\{ name: (?P<name>[^,}]*), type: (?P<op>[^ }]*) \}")

_sessions: dict[str, Any] = {}


@dataclass(frozen=True)
class Chip:
    """What the compiler is told of the phone's chip: Qualcomm's number of the SoC, and the NPU's architecture."""

    soc_model: str
    htp_arch: str


@dataclass(frozen=True)
class Compiled:
    """What a compilation gave beside its files."""

    seconds: float
    nodes: dict[str, int]  # unit -> nodes of onnxruntime's graph, as it assigned them


def compile_contexts(graphs: Sequence[str], contexts: Sequence[str], chip: Chip) -> list[Compiled]:
    """Compile each graph to a context: `contexts` are the small .onnx files that refer to a binary beside the first of them.

    The contexts of several graphs go to one binary, which holds what they share once. Raises onnxruntime's exception where
    the NPU takes not every node.
    """
    import onnxruntime

    found = []
    for number, (graph, context) in enumerate(zip(graphs, contexts, strict=True)):
        options = _options()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_embed_mode", "0")
        options.add_session_config_entry("ep.context_file_path", context)
        sharing = {}
        if len(graphs) > 1:
            sharing = {"enable_htp_weight_sharing": "1"}
            options.add_session_config_entry("ep.share_ep_contexts", "1")
            if number == len(graphs) - 1:
                options.add_session_config_entry("ep.stop_share_ep_contexts", "1")
        _on_npu(options, {"soc_model": chip.soc_model, "htp_arch": chip.htp_arch, **sharing})
        start = time.monotonic()
        session = onnxruntime.InferenceSession(graph, options)
        seconds = time.monotonic() - start
        nodes: Counter[str] = Counter()
        for part in session.get_provider_graph_assignment_info():
            nodes[UNIT if part.ep_name == PROVIDER else part.ep_name] += len(part.get_nodes())
        found.append(Compiled(seconds, dict(sorted(nodes.items()))))
        _sessions[context] = session  # a session that goes takes what is shared with it
    _sessions.clear()
    return found


def load(path: str, chip: Chip) -> dict[str, tuple[str, list[int]]]:
    """Open a context or a graph, which is compiled first, for `run`; its inputs by name: onnxruntime's type and shape."""
    import onnxruntime

    options = _options()
    _on_npu(options, {"soc_model": chip.soc_model, "htp_arch": chip.htp_arch})
    session = onnxruntime.InferenceSession(path, options)
    _sessions[path] = session
    return {i.name: (i.type, list(i.shape)) for i in session.get_inputs()}


def run(path: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of a loaded session by name."""
    session = _sessions[path]
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def refused(printed: str) -> list[tuple[str, str]]:
    """Names and operators of the nodes that the provider said it does not take, sorted; none where it said nothing."""
    lines = [line for line in printed.splitlines() if "Unsupported nodes in QNN EP" in line]
    return sorted({(m["name"].strip(), m["op"].strip()) for line in lines for m in REFUSED.finditer(line)})


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; what the NPU refuses is said at this level
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _on_npu(options: Any, provider: Mapping[str, str]) -> None:
    import onnxruntime
    import onnxruntime_qnn

    if not any(d.ep_name == PROVIDER for d in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == PROVIDER]
    npus = [d for d in devices if d.device.type == onnxruntime.OrtHardwareDeviceType.NPU] or devices
    settings = {
        "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
        "htp_graph_finalization_optimization_mode": OPTIMIZATION,
        **provider,
    }
    options.add_provider_for_devices(npus[:1], settings)


def library_version() -> str:
    """Version of Qualcomm's compiler inside the installed onnxruntime-qnn."""
    import onnxruntime_qnn

    return str(onnxruntime_qnn.build_and_package_info.qnn_version)


def binary_of(context: Path) -> str:
    """Name of the binary that a context's .onnx refers to."""
    import onnx

    node = onnx.load(str(context), load_external_data=False).graph.node[0]
    stated = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return str(stated["ep_cache_context"].decode())
