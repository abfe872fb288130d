"""The record of the target `onnx:cuda`."""

from __future__ import annotations

from dataclasses import replace

from snapgen_deploy.export.onnx.spec import ONNX
from snapgen_deploy.export.spec import Memory, OneUnit, Runtime

CUDA_UNIT = "CUDAExecutionProvider"

CUDA = replace(
    ONNX,
    variant="cuda",
    implementation="snapgen_deploy.export.cuda.target:OnnxCuda",
    precisions=("fp16", "fp32"),
    calibrated=(),
    by_tensor=(),
    palette_bits=(),
    loaded_as={},
    memory=Memory(ONNX.memory.converting, ONNX.memory.checking, at_precision={"fp16": ONNX.memory.at_precision["fp16"]}),
    runtime=Runtime(package="onnxruntime", module="onnxruntime", preload=("onnxruntime",), shared_process=True),
    links=(),
    machines=("cpu",),
    also_on=("cpu",),
    basis=None,
    apps={"triton": "KIND_GPU"},
    placement=OneUnit(CUDA_UNIT, "nodes_outside_gpu"),
)
