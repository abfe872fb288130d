#!/usr/bin/env bash
# onnxruntime-qnn 2.7.0 (QNN 2.51), on the emulation of a Hexagon NPU in its wheel: where the range of its input ends at h < 1,
# Reciprocal of 16-bit activations gives h times the true value: 2 instead of 4 at x = 0.25 for a range up to 0.5.
# 1 divided by x in the same precisions is right to 1e-3, and so is Reciprocal where the range ends at 1 or above.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  onnx==1.23.0 onnxruntime==1.32.0 onnxruntime-qnn==2.7.0 numpy==2.3.5
cd "$folder"
venv/bin/python - <<'PY'
import numpy as np
import onnxruntime as ort
import onnxruntime_qnn
from onnx import TensorProto, helper, numpy_helper

NPU = "QNNExecutionProvider"
ort.register_execution_provider_library(NPU, onnxruntime_qnn.get_library_path())
nodes, weights = [], []


def rounded(name, end):
    """The value rounded to 16 bits between 0 and `end`."""
    numbers = {f"{name}_scale": np.array(end / 65535, np.float32), f"{name}_zero": np.array(0, np.uint16)}
    weights.extend(numpy_helper.from_array(array, key) for key, array in numbers.items())
    nodes.append(helper.make_node("QuantizeLinear", [name, *numbers], [f"{name}_16bit"]))
    nodes.append(helper.make_node("DequantizeLinear", [f"{name}_16bit", *numbers], [f"{name}_rounded"]))
    return f"{name}_rounded"


def largest_ratio(op, end):
    """Value over true value on the NPU, at the x whose ratio is farthest from 1; x is end / 2 ... end."""
    nodes.clear(), weights.clear()
    x = np.linspace(end / 2, end, 64, dtype=np.float32)[None]
    inputs = [rounded("x", end)]
    if op == "Div":
        weights.append(numpy_helper.from_array(np.ones(1, np.float32), "one"))
        inputs.insert(0, rounded("one", 1))
    nodes.append(helper.make_node(op, inputs, ["inverse"]))
    rounded("inverse", 2 / end)
    nodes[-1].output[0] = "y"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    devices = [device for device in ort.get_ep_devices() if device.ep_name == NPU]
    settings = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "soc_model": "43", "htp_arch": "73"}
    options.add_provider_for_devices(devices[:1], settings)
    (y,) = ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})
    ratios = (y * x).ravel()
    return float(ratios[np.argmax(abs(ratios - 1))])


found = {(op, end): largest_ratio(op, end) for op in ("Reciprocal", "Div") for end in (0.25, 0.5, 1.0, 4.0)}
print(f"QNN {onnxruntime_qnn.build_and_package_info.qnn_version}: result over true value, by operator and end of the range:")
for (op, end), ratio in found.items():
    print(f"  {op} {end}: {ratio:.4f}")
    assert abs(ratio - (end if op == "Reciprocal" and end < 1 else 1)) < 1e-3
PY
