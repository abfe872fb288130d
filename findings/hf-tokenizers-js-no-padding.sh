#!/usr/bin/env bash
# @huggingface/tokenizers 0.2.0, the JavaScript reader of tokenizer.json: it leaves out a file's padding, and gives a word that a
# WordLevel model does not know the id `undefined` in place of that of unk_token. The Python library does both on the same file.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check tokenizers==0.22.2
cd "$folder"
npm install --silent --no-fund --no-audit @huggingface/tokenizers@0.2.0
venv/bin/python - <<'PY'
from tokenizers import Tokenizer, models, pre_tokenizers

tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "red": 2, "ring": 3}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=5)
tokenizer.save("tokenizer.json")
found = tokenizer.encode("red zebra ring")
print("Python:", found.ids, found.attention_mask)
assert (found.ids, found.attention_mask) == ([2, 1, 3, 0, 0], [1, 1, 1, 0, 0])
PY
cat > try.mjs <<'JS'
import { readFileSync } from "node:fs";
import { Tokenizer } from "@huggingface/tokenizers";
const { ids, attention_mask } = new Tokenizer(JSON.parse(readFileSync("tokenizer.json", "utf8")), {}).encode("red zebra ring");
console.log("JavaScript:", ids, attention_mask);
if (ids.length !== 3 || ids[1] !== undefined || attention_mask.length !== 3) process.exit(1);
JS
node try.mjs
