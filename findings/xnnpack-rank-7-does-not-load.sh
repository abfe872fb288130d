#!/usr/bin/env bash
# executorch 1.4.1: XNNPACK's partitioner takes a tensor of rank 7, and lowering and writing the program succeed. Its method then
# does not load (xnn_status_unsupported_parameter). Rank 6 runs. Nothing at export time names the limit.
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
from executorch.runtime import Runtime


class Reversed(torch.nn.Module):
    def forward(self, x):
        return x.permute(*reversed(range(x.dim()))) + 1


found = {}
for rank in (6, 7):
    x = torch.randn([2] * rank)
    lowered = to_edge_transform_and_lower(torch.export.export(Reversed(), (x,)), partitioner=[XnnpackPartitioner()])
    assert any("call_delegate" in str(node.target) for node in lowered.exported_program().graph.nodes)
    program = Runtime.get().load_program(lowered.to_executorch().buffer)
    try:
        (y,) = program.load_method("forward").execute((x,))
    except RuntimeError as error:
        found[rank] = str(error)
    else:
        assert torch.equal(y, Reversed()(x))
        found[rank] = "runs"
    print(f"executorch {version('executorch')}: rank {rank}: lowered; then: {found[rank]}")
assert found[6] == "runs" and "Failed to load method" in found[7]
PY
