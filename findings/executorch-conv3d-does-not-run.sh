#!/usr/bin/env bash
# executorch 1.4.1: a convolution over five axes (here of one frame) lowers and is written without complaint. XNNPACK leaves it to
# the portable kernel, which takes three or four axes: the program loads, and its first call fails. An image's convolution runs.
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

found = {}
for axes, layer in ((2, torch.nn.Conv2d(3, 4, 3, padding=1)), (3, torch.nn.Conv3d(3, 4, 3, padding=1))):
    x = torch.ones(1, 3, *[5] * axes)
    lowered = to_edge_transform_and_lower(torch.export.export(layer.eval(), (x,)), partitioner=[XnnpackPartitioner()])
    method = Runtime.get().load_program(lowered.to_executorch().buffer).load_method("forward")
    try:
        (y,) = method.execute((x,))
    except RuntimeError as error:
        found[axes] = str(error)
    else:
        assert torch.allclose(y, layer(x), atol=1e-5)
        found[axes] = "runs"
    print(f"executorch {version('executorch')}: a convolution over {axes} axes of space: lowered, loaded; then: {found[axes]}")
assert found[2] == "runs" and found[3] != "runs"
PY
