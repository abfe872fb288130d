#!/usr/bin/env bash
# coremltools 9.0, conversion to fp16 from iOS 17 on: the indices of a gather are cast to int16 where the length of its axis is known
# only at run time, although the file itself allows 100,000 rows and int16 ends at 32,767. With 100,000 rows for certain they
# stay int32.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check coremltools==9.0 numpy==2.3.5
cd "$folder"
venv/bin/python - <<'PY' 2>&1 | grep -v -E "^Failed to load|Running MIL|^scikit-learn|^$"
import coremltools as ct
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import get_new_symbol, types

ROWS = 100_000
found = {}
for kind, rows in (("fixed", ROWS), ("flexible", get_new_symbol())):

    @mb.program(
        input_specs=[mb.TensorSpec((rows, 2)), mb.TensorSpec((3,), dtype=types.int32)], opset_version=ct.target.iOS18
    )
    def network(table, index):
        return mb.gather(x=table, indices=index, axis=0, validate_indices=False)

    shapes = [(ct.RangeDim(1, ROWS, 100) if kind == "flexible" else ROWS, 2), (3,)]
    model = ct.convert(
        network,
        inputs=[ct.TensorType(name="table", shape=shapes[0]), ct.TensorType(name="index", shape=shapes[1])],
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )
    (gather,) = (op for op in model._mil_program.functions["main"].operations if op.op_type == "gather")
    found[kind] = types.builtin_to_string(gather.indices.dtype)
    bounds = model.get_spec().description.input[0].type.multiArrayType.shapeRange.sizeRanges
    print(f"coremltools {ct.__version__}: {kind} rows: at most {bounds[0].upperBound if bounds else ROWS}, indices {found[kind]}")
    assert not bounds or bounds[0].upperBound == ROWS
assert found == {"fixed": "int32", "flexible": "int16"}
PY
