#!/usr/bin/env bash
# coremltools 9.0 converts gelu(approximate="tanh") of a torch.export program to Core ML's gelu with mode EXACT, without a warning:
# the argument is a keyword there, and is looked for among the positional ones.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 coremltools==9.0 numpy==2.3.5
cd "$folder"
venv/bin/python -W ignore - <<'PY' 2>&1 | grep -v -E "^Failed to load|Running MIL|Converting PyTorch|^scikit-learn|^$"
import coremltools as ct
import torch

found = {}
for form in ("none", "tanh"):
    traced = torch.export.export(torch.nn.GELU(approximate=form).eval(), (torch.ones(1, 8),)).run_decompositions({})
    (node,) = (node for node in traced.graph.nodes if "gelu" in str(node.target))
    assert node.kwargs.get("approximate", "none") == form  # torch's graph has it
    model = ct.convert(traced, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
    found[form] = [op.mode.val for op in model._mil_program.functions["main"].operations if op.op_type == "gelu"]
print(f"coremltools {ct.__version__}, torch {torch.__version__}: mode of Core ML's gelu for approximate=...: {found}")
assert found == {"none": ["EXACT"], "tanh": ["EXACT"]}
PY
