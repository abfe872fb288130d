"""The records of the targets `executorch`: one for each delegate."""

from __future__ import annotations

from dataclasses import replace

from snapgen_deploy.export.coreml.spec import OLDER, STORED
from snapgen_deploy.export.spec import Cost, Memory, OneDelegate, Runtime, TargetSpec, Writing

_TOOLS = ("executorch", "torchao", "flatbuffers")
_CLOSED = "a .pte file hands whole graphs to its delegate, which shows no value inside"
RUNTIME = Runtime(package="executorch", module="snapgen_deploy.export.executorch.runtime", shared_process=True)
# The delegate has no conversion of dtypes: a network that is fp16 inside has one at each of its ports.
PLACEMENT = OneDelegate(at_ports="dim_order_ops::_to_dim_order_copy.out")
# Sets of ExecuTorch's partitioner that grow with the square of the number of operators.
_LOOP = 700_000_000

XNNPACK = TargetSpec(
    name="executorch",
    variant="xnnpack",
    implementation="snapgen_deploy.export.executorch.target:ExecuTorch",
    precisions=("fp32", "fp16", "int8-dynamic", "int4-dynamic"),
    layout="token",
    suffix=".pte",
    calibrated=("int8-dynamic", "int4-dynamic"),  # for their convolutions
    memory=Memory(Cost(650_000_000, 1.3), Cost(400_000_000, 2.1, 1.2), loop=_LOOP),
    tools=_TOOLS,
    runtime=RUNTIME,
    links=("adb",),
    machines=("arm64",),
    basis="arm_cpu",
    arithmetic={"fp16": "fp16"},  # XNNPACK makes no fp16 operators on other cores (xnn_status_unsupported_hardware)
    placement=PLACEMENT,
    closed=_CLOSED,
    apps={"android": "ExecuTorchEngine", "ios": "ExecuTorchEngine"},
)
# Of the delegates below only the embedded checkpoint was measured; what they take for each byte of a weight counts the copies
# that the conversion makes. The links of Apple's devices run packages only.
EXECUTORCH_COREML = TargetSpec(
    name="executorch",
    variant="coreml",
    implementation="snapgen_deploy.export.executorch.coreml:ExecuTorchCoreML",
    precisions=STORED,
    layout="channels",
    suffix=".pte",
    older_systems=OLDER,
    memory=Memory(Cost(800_000_000, 2.4), Cost(700_000_000, 1.65, 2.1), loop=_LOOP),
    tools=(*_TOOLS, "coremltools", "scikit-learn", "protobuf"),
    runtime=replace(
        RUNTIME,
        numbers_only="this host runs the Core ML packages inside for their numbers, not for their speed",
    ),
    placement=PLACEMENT,
    closed=_CLOSED,
    apps={"ios": "ExecuTorchEngine"},
)
VULKAN = TargetSpec(
    name="executorch",
    variant="vulkan",
    implementation="snapgen_deploy.export.executorch.vulkan:ExecuTorchVulkan",
    precisions=("fp16", "fp32"),
    layout="token",
    suffix=".pte",
    # The delegate takes whole norms, too, and then does not load those without a weight (executorch 1.4.1).
    writing=Writing(upsample="native"),
    memory=Memory(Cost(700_000_000, 2.4), Cost(400_000_000, 2.1, 1.2), loop=_LOOP),
    tools=_TOOLS,
    runtime=RUNTIME,
    links=("adb",),
    placement=PLACEMENT,
    closed=_CLOSED,
    apps={"android": "ExecuTorchEngine"},
)
