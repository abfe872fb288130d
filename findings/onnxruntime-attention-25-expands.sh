#!/usr/bin/env bash
# onnxruntime 1.32.0 on CPU: the operator Attention runs as one kernel at opset 23 and 24. The same node at opset 25 has no CPU
# kernel: it is expanded into dozens of small nodes, without a warning.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check onnx==1.23.0 onnxruntime==1.32.0 numpy==2.3.5
cd "$folder"
venv/bin/python - <<'PY'
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

counts = {}
for opset in (23, 24, 25):
    values = {"q": 8, "k": 4, "v": 4, "y": 8}  # heads; batch 1, 64 tokens, 32 values a head
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, heads, 64, 32]) for name, heads in values.items()]
    graph = helper.make_graph([helper.make_node("Attention", ["q", "k", "v"], ["y"])], "g", ends[:3], ends[3:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = f"{opset}.onnx", 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    counts[opset] = len(onnx.load(f"{opset}.onnx").graph.node)
print(f"onnxruntime {ort.__version__}: nodes that run for one Attention, by opset: {counts}")
assert counts[23] == counts[24] == 1 and counts[25] > 30
PY
