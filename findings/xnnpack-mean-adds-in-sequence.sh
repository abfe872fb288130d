#!/usr/bin/env bash
# executorch 1.4.1, XNNPACK on x86-64: the fp32 mean over height and width adds one number after the other, so that over 1024 x 1024
# positive numbers it is about 1e-4 off, three orders of magnitude more than torch. An average pool over tiles before it gives 4e-7.
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
from torch.nn import functional


class Mean(torch.nn.Module):
    def __init__(self, tile):
        super().__init__()
        self.tile = tile

    def forward(self, x):
        x = x * x
        if self.tile:
            x = functional.avg_pool2d(x, self.tile, self.tile, count_include_pad=False)
        return x.mean((2, 3), keepdim=True)


torch.manual_seed(0)
x = torch.randn(1, 16, 1024, 1024) * 0.5 + 1.0
exact, found = x.double().square().mean((2, 3), keepdim=True), {}


def error(y):
    return float(((y.double() - exact) / exact).abs().max())


for tile in (0, 32):
    program = torch.export.export(Mean(tile), (x,))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    found[tile] = error(Runtime.get().load_program(lowered.buffer).load_method("forward").execute((x,))[0])
    print(f"executorch {version('executorch')}: {'by tiles of 32 x 32' if tile else 'at once'}: relative error {found[tile]:.1e}")
print(f"torch: {error(Mean(0)(x)):.1e}")
assert found[0] > 3e-5 and found[32] < 3e-6, found
PY
