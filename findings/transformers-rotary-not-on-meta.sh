#!/usr/bin/env bash
# transformers 4.57.6 with torch 2.13.0: Llama, Gemma and Qwen do not run on the meta device, where CLIP and T5 do.
#
# Shapes and costs of a network are read there, without its weights. The rotary embedding of a decoder turns autocasting off for
# the device that its input lies on, and torch knows no autocasting for meta: even switching it off is an error, whose text names
# neither the device nor autocasting.
# Seen: RuntimeError: unsupported scalarType, for Llama, Gemma 3 and Qwen3; CLIP and T5 give (1, 6, 32).
set -euo pipefail
place=$(mktemp -d) && trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3.11}" -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==4.57.6
cat > "$place/run.py" <<'PY'
import torch
from transformers import CLIPTextConfig, CLIPTextModel, Gemma3TextConfig, Gemma3TextModel, LlamaConfig, LlamaModel
from transformers import Qwen3Config, Qwen3Model, T5Config, T5EncoderModel

small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
decoder = {**small, "num_key_value_heads": 1, "head_dim": 16}
t5 = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2, "vocab_size": 50}
cases = [
    (CLIPTextModel, CLIPTextConfig(**small), True), (T5EncoderModel, T5Config(**t5), True),
    (LlamaModel, LlamaConfig(**decoder), False), (Gemma3TextModel, Gemma3TextConfig(**decoder), False),
    (Qwen3Model, Qwen3Config(**decoder), False),
]
for kind, config, runs in cases:
    with torch.device("meta"):
        model = kind(config).eval()
    try:
        said = tuple(model(input_ids=torch.ones(1, 6, dtype=torch.long, device="meta")).last_hidden_state.shape)
    except RuntimeError as error:
        said = f"RuntimeError: {error}"
    print(f"{kind.__name__}: {said}")
    assert said == ((1, 6, 32) if runs else "RuntimeError: unsupported scalarType")
try:
    torch.autocast("meta", enabled=False)
    raise SystemExit("autocasting on meta can be turned off: this finding is over")
except RuntimeError as error:
    assert str(error) == "unsupported scalarType"
PY
"$place/venv/bin/python" "$place/run.py"
