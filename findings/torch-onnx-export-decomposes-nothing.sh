#!/usr/bin/env bash
# torch 2.13.0, onnxscript 0.7.2: a third of `torch.onnx.export` decomposes a graph in which there is nothing to decompose.
#
# The step replaces operators that have no ONNX function. It runs for every network, and traces the whole graph anew, twice, also
# where each operator has such a function. Left out, the file has the same operators and the same output.
# Seen: 24 layers of products and a softmax, all operators known: 28 to 36 % of the export's time, on two cores.
set -euo pipefail
place=$(mktemp -d) && trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3.11}" -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check \
  torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 numpy==2.4.6
cat > "$place/run.py" <<'PY'
import time
import warnings
from collections import Counter

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.onnx._internal.exporter import _fx_passes

warnings.simplefilter("ignore")


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.out = (nn.Parameter(torch.randn(32, 32) / 6) for _ in range(3))

    def forward(self, x):
        heads = [torch.matmul(x, weight).reshape(2, 16, 4, 8).transpose(1, 2) for weight in (self.q, self.k)]
        mixed = torch.matmul(torch.softmax(torch.matmul(heads[0], heads[1].transpose(2, 3)), -1), heads[1])
        return x + torch.matmul(mixed.transpose(1, 2).reshape(2, 16, 32), self.out)


theirs = _fx_passes.decompose_with_registry
unknown, seconds = set(), {}


def watched(program, registry):
    known = {functions[0].fx_target for functions in registry.functions.values()}
    unknown.update(str(n.target) for n in program.graph.nodes if n.op == "call_function" and n.target not in known)
    start = time.perf_counter()
    result = theirs(program, registry) if how == "as it is" else program
    seconds["step"] = time.perf_counter() - start
    return result


_fx_passes.decompose_with_registry = watched
torch.manual_seed(0)
network, x = nn.Sequential(*(Layer() for _ in range(24))).eval(), torch.randn(2, 16, 32)
files, outputs, share = [], [], 0.0
for how in ("to import what it needs", "as it is", "without the step"):
    start = time.perf_counter()
    model = torch.onnx.export(network, (x,), dynamo=True, verbose=False).model_proto
    seconds["export"] = time.perf_counter() - start
    share = seconds["step"] / seconds["export"] if how == "as it is" else share
    files.append(Counter(node.op_type for node in model.graph.node))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    outputs.append(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
print(f"operators without a function: {', '.join(unknown) or 'none'}; the step takes {share:.0%} of an export")
assert not unknown
assert share > 0.15
assert files[1] == files[2]
assert np.allclose(outputs[1], outputs[2], atol=1e-5)
PY
"$place/venv/bin/python" "$place/run.py" 2> "$place/errors" || { cat "$place/errors"; exit 1; }
