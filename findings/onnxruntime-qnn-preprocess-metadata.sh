#!/usr/bin/env bash
# onnxruntime 1.32.0: qnn_preprocess_model, which is meant to run before quantisation for Qualcomm's NPUs, ends in a TypeError on a
# model with an entry in metadata_props. The same model without the entry is taken.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check onnx==1.23.0 onnx-ir==0.2.1 onnxruntime==1.32.0 numpy==2.3.5
cd "$folder"
venv/bin/python - <<'PY'
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from onnxruntime.quantization.execution_providers.qnn import qnn_preprocess_model

found = {}
for metadata in ({}, {"author": "someone"}):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], name="relu")], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, "model.onnx")
    try:
        qnn_preprocess_model("model.onnx", "prepared.onnx")
    except TypeError as error:
        found[len(metadata)] = str(error)
    else:
        found[len(metadata)] = "taken"
    print(f"onnxruntime {ort.__version__}: {len(metadata)} entries of metadata: {found[len(metadata)]}")
assert found[0] == "taken" and "dictionary update sequence" in found[1]
PY
