#!/usr/bin/env bash
# coremltools 9.0 does not convert a slice over the whole of an axis, such as CLIP's position_ids[:, :seq_length] at full length:
# torch.export of torch 2.13 makes it aten.alias, which coremltools does not know. A shorter slice converts.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 coremltools==9.0 numpy==2.3.5
cd "$folder"
venv/bin/python -W ignore - <<'PY' 2>&1 | grep -v -E "^Failed to load|Running MIL|Converting PyTorch|^scikit-learn|^$|^ERROR|op 'alias'"
import coremltools as ct
import torch


class Slice(torch.nn.Module):
    def __init__(self, length):
        super().__init__()
        self.length = length

    def forward(self, x):
        return x[:, : self.length] * 2.0


found = {}
for length in (3, 4):
    traced = torch.export.export(Slice(length).eval(), (torch.ones(1, 4),)).run_decompositions({})
    try:
        ct.convert(traced, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
        found[length] = "converts"
    except Exception as error:
        found[length] = str(error).splitlines()[-1].strip() or type(error).__name__
print(f"coremltools {ct.__version__}, torch {torch.__version__}: x[:, :n] of 4 columns: {found}")
assert found[3] == "converts" and found[4] != "converts", found
PY
