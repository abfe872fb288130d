#!/usr/bin/env bash
# transformers 4.57.6 reads a Gemma 3 that Gemma3ForCausalLM saved as Gemma3TextModel without an error, and every weight is random: the
# class has no base_model_prefix, so that no name matches. Gemma 2 and Qwen 3 come through. Only a warning says it.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==4.57.6 numpy==2.3.5
cd "$folder"
venv/bin/python -W ignore - <<'PY' 2>&1 | grep -v -E "^Some weights|^You should probably"
import torch
import transformers as t

small = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
small |= {"num_key_value_heads": 1, "head_dim": 8}
found = {}
for whole, text in (("Gemma2ForCausalLM", "Gemma2Model"), ("Gemma3ForCausalLM", "Gemma3TextModel"), ("Qwen3ForCausalLM", "Qwen3Model")):
    saved = getattr(t, whole)(getattr(t, whole).config_class(**small))
    saved.save_pretrained(text)
    read = getattr(t, text).from_pretrained(text)
    found[text] = torch.equal(saved.model.embed_tokens.weight, read.embed_tokens.weight)
print(f"transformers {t.__version__}: read back as they were saved: {found}")
assert found == {"Gemma2Model": True, "Gemma3TextModel": False, "Qwen3Model": True}
PY
