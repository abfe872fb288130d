"""The record of the target `onnx`."""

from __future__ import annotations

from snapgen_deploy.export.spec import Cost, Memory, Runtime, TargetSpec, Writing

TOOLS = ("onnx", "onnxruntime", "onnxscript", "onnx-ir", "optimum", "optimum-onnx", "transformers", "protobuf")
# onnxruntime fuses whole norms; the delegates of phones take them only spelled out.
WRITING = Writing(ops="native", half_ops="native", upsample="native", attentions=("operator", "spelled"))

ONNX = TargetSpec(
    name="onnx",
    variant="cpu",
    implementation="snapgen_deploy.export.onnx.target:Onnx",
    precisions=("fp32", "fp16", "int8-dynamic", "int8-static", "int4", "mixed"),
    layout="token",
    suffix=".onnx",
    calibrated=("int8-static",),
    by_tensor=("int4",),
    palette_bits=(4, 8),
    loaded_as={"mixed": "fp32"},  # onnxruntime makes fp32 weights of palettes when it loads them
    one_picture="",
    folders={"diffusers": "snapgen_deploy.export.onnx.optimum_layout"},
    writing=WRITING,
    memory=Memory(
        Cost(660_000_000, 1.45),
        Cost(380_000_000, 1.75, 5.0),
        # fp16 holds both forms for a while; onnxruntime's 8-bit quantiser holds the graph, a copy of every weight in fp32 and
        # the quantised ones
        at_precision={
            "fp16": Cost(660_000_000, 1.8),
            "int8-dynamic": Cost(660_000_000, 3.3),
            "int8-static": Cost(660_000_000, 3.3),
            "int4": Cost(660_000_000, 1.8),
            "mixed": Cost(660_000_000, 1.8),
        },
        # two copies of the largest tensor in bf16; then onnxruntime, which packs the products once more
        converting_by_tensor=(Cost(760_000_000, 0.0, 1.0), Cost(760_000_000, 0.3)),
        checking_by_tensor=Cost(0, 0.3),
        at_option={("optimize", "optimum"): 1.8},  # its validator runs the component in the converting process
    ),
    tools=TOOLS,
    runtime=Runtime(
        package="onnxruntime",
        module="onnxruntime",
        preload=("onnxruntime",),
        shared_process=True,
        host_default=True,
    ),
    links=("adb",),
    machines=("arm64",),
    basis="arm_cpu",
    apps={"android": "OnnxruntimeEngine", "triton": "KIND_CPU"},
)
