"""The record of the target `coreml`."""

from __future__ import annotations

from snapgen_deploy.export.spec import Cost, Memory, OlderSystems, Runtime, TargetSpec

# What coremltools stores: by itself, inside ExecuTorch, and, by the same names, Core AI.
STORED = (
    "fp16", "fp32", "palette8", "palette6", "palette4", "palette8-grouped", "palette6-grouped", "palette4-grouped",
    "int8", "int4",
)  # fmt: skip

# They read packages of one function.
OLDER = OlderSystems(("iOS15", "iOS16", "iOS17", "macOS12", "macOS13", "macOS14"), "iOS 18 or macOS 15")

COREML = TargetSpec(
    name="coreml",
    implementation="snapgen_deploy.export.coreml.target:CoreML",
    precisions=(*STORED, "w8a8", "mixed"),
    layout="channels",
    suffix=".mlpackage",
    calibrated=("w8a8",),
    by_tensor=("fp16", "int8", "int4"),
    palette_bits=(3, 4, 8),
    older_systems=OLDER,
    memory=Memory(
        Cost(600_000_000, 1.7),
        Cost(600_000_000, 1.65, 2.1),
        converting_by_tensor=(Cost(800_000_000, 0.0, 1.0),),  # two copies of the largest tensor in bf16
        checking_by_tensor=Cost(4_300_000_000, 0.0),  # what our executor keeps of the constants
    ),
    tools=("coremltools", "scikit-learn", "protobuf"),
    runtime=Runtime(
        package="coremltools",
        module="coremltools",
        numbers_only="this host runs Core ML packages for their numbers, not for their speed",
        instead="measure on a Mac (--link mac), on a phone (--link iphone), or another target of the bundle (--target)",
    ),
    links=("iphone", "mac"),
    basis="neural_engine",
    apps={"ios": "CoreMLEngine"},
)
