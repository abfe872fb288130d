#!/usr/bin/env bash
# NumPy 2.4.6 on a processor with AVX-512 but without its fp16 arithmetic (Ice Lake, Zen 4): np.sort leaves a large float16 array
# with negative values out of order, so np.unique finds some 450 different values where there are 256. float32 is right. A newer
# processor shows it with that arithmetic switched off, as here; one without AVX-512 cannot show it, and the script says so.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6
cd "$folder"
NPY_DISABLE_CPU_FEATURES=AVX512_SPR venv/bin/python -W ignore - <<'PY'
import sys

import numpy as np
from numpy._core._multiarray_umath import __cpu_features__ as features

if not features["AVX512_ICL"]:
    sys.exit("this processor has not the AVX-512 that NumPy sorts 16-bit numbers with: it cannot show this")
table = np.arange(-128, 128).astype(np.float16)
values = table[np.random.default_rng(0).integers(0, 256, 600_000)]
halves, singles = np.sort(values), np.sort(values.astype(np.float32))
found = [len(np.unique(x)) for x in (values, values.astype(np.float32))]
wrong = int((halves.astype(np.float32) != singles).sum())
print(f"numpy {np.__version__}: np.unique finds {found[0]} values in float16, {found[1]} in float32; {wrong} of 600000 misplaced")
assert found[1] == 256
assert wrong > 0
assert found[0] != 256
PY
