#!/usr/bin/env bash
# executorch 1.4.1 (torch 2.13.0): `import executorch.runtime`, which only runs files, imports the exporter and torch's compiler.
#
# The runtime's bindings take one class of warnings from `executorch.exir`, whose package imports all of the exporter. Loading the
# native library itself is a matter of milliseconds: what a process that only runs a .pte waits for is the import.
# Seen: exporter and torch._dynamo are there after the import; 3.2 and 4.4 s, and 0.01 s with an empty package in the exporter's place.
set -euo pipefail
place=$(mktemp -d) && trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3.11}" -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 executorch==1.4.1 torchao==0.18.0
cat > "$place/run.py" <<'PY'
import sys
import time
import types
import warnings

import torch

warnings.simplefilter("ignore")
if sys.argv[1] == "alone":  # the runtime needs no more of the exporter than one file
    import executorch

    package = types.ModuleType("executorch.exir")
    package.__path__ = [f"{path}/exir" for path in executorch.__path__]
    sys.modules["executorch.exir"] = package
before, start = len(sys.modules), time.perf_counter()
from executorch.runtime import Runtime

backends = Runtime.get().backend_registry.registered_backend_names
seconds = time.perf_counter() - start
compiler = "torch._dynamo" in sys.modules
print(f"{sys.argv[1]}: {len(sys.modules) - before} modules, {seconds:.2f} s, torch._dynamo imported: {compiler}")
assert "XnnpackBackend" in backends
assert compiler == (sys.argv[1] == "usual")
PY
for how in usual alone; do "$place/venv/bin/python" "$place/run.py" "$how" 2> "$place/errors" || { cat "$place/errors"; exit 1; }; done
