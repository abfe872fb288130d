"""The record of the target `onnx:qnn`."""

from __future__ import annotations

from dataclasses import replace

from snapgen_deploy.export.onnx.spec import TOOLS, WRITING
from snapgen_deploy.export.spec import Cost, Memory, OneUnit, Runtime, TargetSpec
from snapgen_deploy.extras import Extra

UNIT = "HTP"  # what the provider's NPU is called in placements

QNN = TargetSpec(
    name="onnx",
    variant="qnn",
    implementation="snapgen_deploy.export.qnn.target:OnnxQnn",
    precisions=("fp16", "w8a16"),
    layout="channels",
    suffix=".onnx",
    calibrated=("w8a16",),
    one_size="Qualcomm's emulation crashes when it loads contexts that share weights, so that they cannot be checked",
    from_figures=("soc_model", "htp_arch"),
    # the NPU has no Einsum, which the split form of attention is made of
    writing=replace(WRITING, forms=("loop", "batched"), text_form="batched", attentions=()),
    # of the embedded checkpoint alone, with a wide margin: the compiler's process, and one that runs each component, included
    memory=Memory(Cost(1_000_000_000, 8.0), Cost(1_500_000_000, 4.0, 4.0)),
    tools=(*TOOLS, "onnxruntime-qnn"),
    runtime=Runtime(
        package="onnxruntime",
        module="onnxruntime",
        shared_process=True,
        numbers_only="this host runs Qualcomm's emulation of the NPU for its numbers, and its time says nothing of a phone's",
    ),
    extra=Extra("qnn", ("onnxruntime_qnn",)),
    placement=OneUnit(UNIT, "nodes_outside_npu"),
)
