#!/usr/bin/env bash
# onnxruntime 1.32.0: MatMulNBitsQuantizer stores the weight of a MatMul in 4 bits and leaves the same weight of a Gemm in fp32,
# without an error (one INFO line, "skip to quantize"). torch.nn.Linear on 2-D input is exported as Gemm.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check onnx==1.23.0 onnx-ir==0.2.1 onnxruntime==1.32.0 numpy==2.3.5
cd "$folder"
venv/bin/python - <<'PY'
import logging

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

logging.disable(logging.INFO)
weight = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
found = {}
for kind in ("MatMul", "Gemm"):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 256]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    quantiser = MatMulNBitsQuantizer(model, bits=4, block_size=32, is_symmetric=True)
    quantiser.process()
    written = quantiser.model.model
    found[kind] = [node.op_type for node in written.graph.node]
    print(f"onnxruntime {ort.__version__}: {kind} -> {found[kind]}, {written.ByteSize()} bytes")
assert found == {"MatMul": ["MatMulNBits"], "Gemm": ["Gemm"]}
PY
