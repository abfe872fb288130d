"""The record of the target `onnx:web`."""

from __future__ import annotations

from dataclasses import replace

from snapgen_deploy.export.onnx.spec import ONNX
from snapgen_deploy.export.spec import Memory, Runtime

WEB = replace(
    ONNX,
    variant="web",
    implementation="snapgen_deploy.export.web.target:OnnxWeb",
    precisions=("fp32", "fp16", "int8-dynamic", "int4"),
    calibrated=(),
    by_tensor=(),
    palette_bits=(),
    loaded_as={},
    one_size="a page loads a whole file for each component, and would load the weights once more for each size",
    one_picture="a page draws one picture in a call",
    folders={},
    writing=replace(ONNX.writing, attentions=()),
    apps={"web": ""},
    memory=Memory(
        ONNX.memory.converting,
        ONNX.memory.checking,
        at_precision={
            name: cost for name, cost in ONNX.memory.at_precision.items() if name in ("fp16", "int8-dynamic", "int4")
        },
    ),
    runtime=Runtime(
        package="onnxruntime",
        module="onnxruntime",
        preload=("onnxruntime",),
        shared_process=True,
        numbers_only="this host runs its files in native onnxruntime, which is quicker than a browser",
        instead="measure in a browser: `python -m benchmarks.web`, or the page's own record",
    ),
    links=(),
    machines=(),
    basis=None,
)
