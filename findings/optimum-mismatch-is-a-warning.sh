#!/usr/bin/env bash
# optimum-onnx 0.1.0: main_export with validation returns normally when the written file differs from the network by more than
# `atol`; the difference is a warning, "The ONNX export succeeded with the warning". A caller cannot tell from the result.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  torch==2.13.0 transformers==4.57.6 optimum==2.1.0 optimum-onnx==0.1.0 onnx==1.23.0 onnxruntime==1.32.0 numpy==2.3.5
cd "$folder"
venv/bin/python -W ignore - <<'PY'
import logging
from importlib.metadata import version
from pathlib import Path

import torch
from optimum.exporters.onnx import main_export
from transformers import BertConfig, BertModel

torch.manual_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
BertModel(BertConfig(vocab_size=64, max_position_embeddings=32, **sizes)).save_pretrained("network")
said = []
logger = logging.getLogger("optimum.exporters.onnx.convert")
logger.addFilter(lambda record: said.append(record.getMessage()) or True)
result = main_export("network", "written", task="feature-extraction", atol=1e-12)
print(f"optimum-onnx {version('optimum-onnx')}: asked for 1e-12, got: {result}, {[f.name for f in Path('written').glob('*.onnx')]}")
assert result is None and Path("written/model.onnx").exists()
assert any("succeeded with the warning" in line and "not within the set tolerance 1e-12" in line for line in said)
PY
