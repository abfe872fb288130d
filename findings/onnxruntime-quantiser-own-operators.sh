#!/usr/bin/env bash
# onnxruntime 1.32.0: its dynamic quantiser raises for a layer that follows one of onnxruntime's own operators.
#
# The quantiser asks for the type of a layer's result, and infers types with ONNX's own inference, which knows no operator of the
# domain com.microsoft and nothing behind one. onnxruntime itself does: the same file runs. Only a layer whose result is an
# output of the graph, which has a type, is taken. `DefaultTensorType` in `extra_options` helps.
# Seen: RuntimeError "Unable to find data type for weight_name='made'"; with the option 1 MatMulInteger, and a result 1.3 % off.
set -euo pipefail
place=$(mktemp -d) && trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3.11}" -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6 sympy==1.14.0
cat > "$place/run.py" <<'PY'
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

place = Path(sys.argv[1])
weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32), "weight")
nodes = [
    helper.make_node("MultiHeadAttention", ["x", "x", "x"], ["mixed"], domain="com.microsoft", num_heads=4),
    helper.make_node("MatMul", ["mixed", "weight"], ["made"]),
    helper.make_node("Relu", ["made"], ["y"]),
]
ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 16, 64]) for name in ("x", "y")]
opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
graph = helper.make_graph(nodes, "layer", ports[:1], ports[1:], [weight])
onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), place / "layer.onnx")
x = {"x": np.random.default_rng(1).standard_normal((2, 16, 64)).astype(np.float32)}


def run(name):
    return onnxruntime.InferenceSession(place / name, providers=["CPUExecutionProvider"]).run(None, x)[0]


plain, said = run("layer.onnx"), ""
try:
    quantize_dynamic(place / "layer.onnx", place / "alone.onnx")
except RuntimeError as error:
    said = str(error)
quantize_dynamic(place / "layer.onnx", place / "told.onnx", extra_options={"DefaultTensorType": TensorProto.FLOAT})
products = sum(node.op_type == "MatMulInteger" for node in onnx.load(place / "told.onnx").graph.node)
error = float(np.linalg.norm(run("told.onnx") - plain) / np.linalg.norm(plain))
print(f"without the option: {said.partition('.')[0]!r}; with it: {products} MatMulInteger, {error:.2%} off")
sys.exit(not (said.startswith("Unable to find data type") and products == 1 and error < 0.05))
PY
"$place/venv/bin/python" "$place/run.py" "$place" 2>/dev/null
