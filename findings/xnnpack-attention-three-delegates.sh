#!/usr/bin/env bash
# executorch 1.4.1: one scaled_dot_product_attention without a mask becomes three XNNPACK delegates, with 12 portable operators
# between them, among them a search for rows that a mask has emptied. The same formula in two bmm and a softmax is one delegate.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 torchao==0.18.0 executorch==1.4.1
cd "$folder"
venv/bin/python -W ignore - <<'PY'
from importlib.metadata import version

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower


class Fused(torch.nn.Module):
    def forward(self, q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)


class Spelled(torch.nn.Module):
    def forward(self, q, k, v):
        return torch.bmm(torch.softmax(torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2)), -1), v)


found = {}
for network, shape in ((Fused(), (1, 4, 64, 32)), (Spelled(), (4, 64, 32))):
    traced = torch.export.export(network.eval(), tuple(torch.randn(shape) for _ in "qkv"))
    lowered = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()])
    called = [str(getattr(node.target, "_op", node.target)) for node in lowered.exported_program().graph.nodes if node.op == "call_function"]
    portable = sorted(name for name in called if "aten" in name)
    name = type(network).__name__
    found[name] = (sum("call_delegate" in one for one in called), len(portable))
    print(f"executorch {version('executorch')}: {name}: {found[name][0]} delegates; outside: {', '.join(portable) or 'nothing'}")
assert found == {"Fused": (3, 12), "Spelled": (1, 0)}
PY
