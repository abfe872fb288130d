#!/usr/bin/env bash
# onnxruntime 1.32.0 on an x86-64 CPU: a file in fp16 is computed in fp32 between casts. sqrt(300 * 300) is 300, where
# fp16 arithmetic gives infinity: running the file here does not show that it overflows on hardware that computes in fp16.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check onnx==1.23.0 onnxruntime==1.32.0 numpy==2.3.5
cd "$folder"
venv/bin/python - <<'PY'
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

value = np.array([300], np.float16)
with np.errstate(over="ignore"):
    half = np.sqrt(value * value)
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1]) for name in "xy"]
nodes = [helper.make_node("Mul", ["x", "x"], ["square"]), helper.make_node("Sqrt", ["square"], ["y"])]
model = helper.make_model(
    helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
)
options = ort.SessionOptions()
options.optimized_model_filepath, options.log_severity_level = "run.onnx", 3
session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
(got,) = session.run(None, {"x": value})
nodes_run = [node.op_type for node in onnx.load("run.onnx").graph.node]
print(f"onnxruntime {ort.__version__}: sqrt(300 * 300) = {got[0]} (numpy in fp16: {half[0]}); nodes run: {nodes_run}")
assert got.dtype == np.float16 and got[0] == 300 and np.isinf(half[0])
assert nodes_run == ["Cast", "Mul", "Sqrt", "Cast"]
PY
