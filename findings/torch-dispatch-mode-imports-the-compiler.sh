#!/usr/bin/env bash
# torch 2.13.0: the first operator on the meta device in a TorchDispatchMode imports torch's compiler, a second and 70 MB.
#
# Modes that count operators are how a network's shapes and costs are read without its weights: nothing is compiled. Two things
# import the compiler: each mode's method is marked as not to be compiled, and so are many shape rules that are written in Python.
# The meta device alone needs them, too: a lookup table or normal values there are enough, a linear layer is not.
# Seen: torch._dynamo is imported by the first sum in a mode, and by an embedding's first values; 0.9 to 1.4 s, 74 MB.
set -euo pipefail
place=$(mktemp -d) && trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3.11}" -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$place/run.py" <<'PY'
import resource
import sys
import time

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class Counting(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def layer():
    with torch.device("meta"):
        nn.Linear(4, 4)


def table():
    with torch.device("meta"):
        nn.Embedding(4, 4)


def counted():
    x = torch.zeros(4, device="meta")
    with Counting() as mode:
        x + x
    assert mode.count == 1


before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
{"layer": layer, "table": table, "counted": counted}[sys.argv[1]]()
seconds, grown = time.perf_counter() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
compiler = "torch._dynamo" in sys.modules
print(f"{sys.argv[1]}: {seconds:.3f} s, {grown:.0f} MB, torch._dynamo imported: {compiler}")
assert compiler == (sys.argv[1] != "layer")
PY
for what in layer table counted; do "$place/venv/bin/python" "$place/run.py" "$what"; done
