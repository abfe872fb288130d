#!/usr/bin/env bash
# executorch 1.4.1 (torch 2.13.0), XNNPACK: a product with a buffer that is the second half of a larger tensor gets the first half.
#
# The delegate's exporter writes a constant's storage from its beginning instead of the constant. Nothing is said: the program
# loads, runs and computes with other weights. A parameter is safe, since lowering copies its values alone, and so is a part that
# is not contiguous. A first half gets the right numbers, and the file holds both halves.
# Seen: error 6.7 for the second half as a buffer, 2e-7 as a parameter; the largest difference from a product with the first half
# is 2e-7. With halves of 256 x 256 numbers, files of 526 kB and 264 kB for a first half as buffer and as parameter.
set -euo pipefail
place=$(mktemp -d) && trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3.11}" -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 executorch==1.4.1 torchao==0.18.0
cat > "$place/run.py" <<'PY'
import warnings

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import nn

warnings.simplefilter("ignore")


class Product(nn.Module):
    def __init__(self, part, held):
        super().__init__()
        self.register_buffer("part", part) if held == "buffer" else setattr(self, "part", nn.Parameter(part))

    def forward(self, x):
        return nn.functional.linear(x, self.part)


def lowered(part, held, x):
    program = torch.export.export(Product(part, held).eval(), (x,))
    data = bytes(to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)
    loaded = Runtime.get().load_program(data)
    return loaded.load_method("forward").execute([x])[0].clone(), len(data)


torch.manual_seed(0)
both, x = torch.randn(8, 4), torch.randn(3, 4)
buffer, parameter = (lowered(both[4:], held, x)[0] for held in ("buffer", "parameter"))
first, second = x @ both[:4].T, x @ both[4:].T
errors = [float((a - b).abs().max()) for a, b in ((buffer, second), (buffer, first), (parameter, second))]
print("second half as a buffer {:.1e}, beside the first half's {:.1e}; as a parameter {:.1e}".format(*errors))
large = torch.randn(512, 256)
sizes = [lowered(large[:256], held, torch.randn(3, 256))[1] for held in ("buffer", "parameter")]
print("bytes of a first half's file: as a buffer {}, as a parameter {}".format(*sizes))
assert errors[0] > 1 and max(errors[1:]) < 1e-5
assert sizes[0] > 1.9 * sizes[1]
PY
"$place/venv/bin/python" "$place/run.py" 2> "$place/errors" || { cat "$place/errors"; exit 1; }
