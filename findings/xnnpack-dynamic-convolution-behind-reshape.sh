#!/usr/bin/env bash
# executorch 1.4.1, XNNPACK: two convolutions quantised with ranges that are measured at run time agree with the quantised graph; with
# a reshape between them, there and back, the file lowers, loads and runs, and its numbers are others. With calibrated ranges they
# are right. In a whole decoder, whose norms reshape, the call fails: "Propagating input shapes failed".
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 torchao==0.18.0 executorch==1.4.1
cd "$folder"
venv/bin/python -W ignore - <<'PY'
from importlib.metadata import version

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e


class Two(torch.nn.Module):
    def __init__(self, reshapes):
        super().__init__()
        self.first, self.second, self.reshapes = torch.nn.Conv2d(8, 8, 1), torch.nn.Conv2d(8, 16, 1), reshapes

    def forward(self, x):
        y = self.first(x)
        return self.second(y.reshape(1, 8, 64).reshape(1, 8, 8, 8) if self.reshapes else y)


torch.manual_seed(0)
x, found = torch.randn(1, 8, 8, 8), {}
for dynamic in (False, True):
    for reshapes in (False, True):
        network = Two(reshapes).eval()
        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic))
        with torch.no_grad():
            prepared = prepare_pt2e(torch.export.export(network, (x,)).module(), quantizer)
            prepared(x)
            program = torch.export.export(convert_pt2e(prepared), (x,))
            expected = network(x)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        (y,) = Runtime.get().load_program(lowered.buffer).load_method("forward").execute((x,))
        key = f"{'dynamic' if dynamic else 'calibrated'} ranges, {'a reshape between' if reshapes else 'nothing between'}"
        found[key] = float((y - expected).norm() / expected.norm())
        print(f"executorch {version('executorch')}: {key}: error against fp32 {found[key]:.3f}")
wrong = [key for key, error in found.items() if error > 0.1]
assert wrong == ["dynamic ranges, a reshape between"], wrong
PY
