#!/usr/bin/env bash
# coreai-core 1.0.0b3, the Core AI runtime in its Linux wheel: a fp16 linear (and bmm) adds its products in fp16, one after the
# other, so 4096 ones times ones give 2048, where adding 1 no longer changes the sum. A 1 x 1 convolution gives 4096.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 coreai-torch==0.4.3 coreai-core==1.0.0b3
cd "$folder"
venv/bin/python -W ignore - <<'PY'
import asyncio
from importlib.metadata import version
from pathlib import Path

import coreai_torch
import torch
from coreai.authoring import AIModelAsset
from coreai.runtime import NDArray


class Linear(torch.nn.Module):
    def forward(self, x, w):
        return torch.nn.functional.linear(x, w)


class Batched(torch.nn.Module):
    def forward(self, x, w):
        return torch.bmm(x[None], w.t()[None])


class Convolution(torch.nn.Module):
    def forward(self, x, w):
        return torch.nn.functional.conv2d(x[..., None, None], w[..., None, None])


async def run(path, **inputs):
    async with AIModelAsset.load(path).executable() as model:
        given = {name: NDArray(value.numpy()) for name, value in inputs.items()}
        (y,) = (await model.load_function("main")(given)).values()
        return float(y.numpy().ravel()[0])


ones, found = torch.ones(1, 4096, dtype=torch.float16), {}
for network in (Linear(), Batched(), Convolution()):
    traced = torch.export.export(network.eval(), (ones, ones)).run_decompositions(coreai_torch.get_decomp_table())
    name = type(network).__name__
    path = Path(f"{name}.aimodel")
    coreai_torch.TorchConverter().add_exported_program(traced).to_coreai().save_asset(path)
    found[name] = asyncio.run(run(path, x=ones, w=ones))
    assert network(ones, ones).item() == 4096
print(f"coreai-core {version('coreai-core')}: 4096 ones times ones in fp16 (torch: 4096): {found}")
assert found == {"Linear": 2048, "Batched": 2048, "Convolution": 4096}
PY
