#!/usr/bin/env bash
# coremltools 9.0, conversion to fp16: constants that fp16 cannot hold have three fates, without a warning for any. 1e5 keeps its
# operation in fp32; fp32's lowest number, the usual mask, becomes -inf; 1e-9 becomes 6e-8, so x * 1e-9 is 60 times too large.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check coremltools==9.0 numpy==2.3.5
cd "$folder"
venv/bin/python - <<'PY' 2>&1 | grep -v -E "^Failed to load|Running MIL|^scikit-learn|^$"
import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb


@mb.program(input_specs=[mb.TensorSpec((2,))], opset_version=ct.target.iOS18)
def network(x):
    masked = mb.add(x=x, y=np.array([0, np.finfo(np.float32).min], np.float32), name="lowest")
    return mb.add(x=mb.mul(x=x, y=np.float32(1e-9), name="small"), y=np.float32(1e5), name="large"), masked


model = ct.convert(
    network, minimum_deployment_target=ct.target.iOS18, compute_precision=ct.precision.FLOAT16, skip_model_load=True
)
stored = {}
for op in model._mil_program.functions["main"].operations:
    if op.op_type in ("add", "mul"):
        stored[op.name.removesuffix("_cast_fp16")] = op.y.val
        print(f"coremltools {ct.__version__}: {op.name}: {op.op_type} with {op.y.val!r}")
assert stored["large"] == 1e5 and stored["large"].dtype == np.float32
assert np.array_equal(stored["lowest"], [0, -np.inf]) and stored["lowest"].dtype == np.float16
assert 5e-8 < float(stored["small"]) < 7e-8 and stored["small"].dtype == np.float16
PY
