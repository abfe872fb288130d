#!/usr/bin/env bash
# torch 2.13.0: exporting a network of three layers and decomposing it writes and compiles the Python code of a graph module 18
# times, and calls none of it: passes interpret the graph. Each change of a large graph costs its whole source anew.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.3.5
cd "$folder"
venv/bin/python -W ignore - <<'PY'
import torch
from torch import nn
from torch.fx import graph_module

compiled, called = [], []
compile_forward = graph_module._forward_from_src


def counted(source, *rest, **named):
    made = compile_forward(source, *rest, **named)
    compiled.append(source)

    def forward(*args, **kwargs):
        called.append(source)
        return made(*args, **kwargs)

    return forward


graph_module._forward_from_src = counted
network = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)).eval()
program = torch.export.export(network, (torch.randn(1, 8),))
exported = len(compiled)
decomposed = program.run_decompositions()
print(f"torch {torch.__version__.partition('+')[0]}: code compiled {exported} times by export, "
      f"{len(compiled) - exported} times by run_decompositions; called {len(called)} times")
assert (exported, len(compiled) - exported, len(called)) == (6, 12, 0)
decomposed.module()(torch.randn(1, 8))
assert called, "the count of calls does not work"
PY
