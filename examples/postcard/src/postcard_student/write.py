"""Writes what snapgen-deploy asks for: weights, a configuration, and golden vectors that this package's own code computes.

    python -m postcard_student.write FOLDER

The weights are random: the example shows the way, and draws nothing.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from postcard_student.network import Postcard

SHIFT, STEPS = 3.0, 4
CONFIG = {
    "family": "module",
    "name": "postcard",
    "trained": False,
    "resolution": [64, 64],
    "steps": STEPS,
    "prompts": ["a red ring", "a blue square"],
    "student": {
        "arguments": {"hidden": 64, "depth": 2, "heads": 4, "channels": 4, "text": 32, "side": 8},
        "latent_channels": 4,
        "latent_factor": 8,
        "unit": 2,
        "text_streams": [{"name": "text", "dim": 32, "length": 8}],
        "time_features": 64,
        "time_module": "sinusoids",
        "inputs": {"latent": "x", "time_features": "t", "text": "prompt", "text_mask": "prompt_mask"},
        "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": SHIFT},
    },
}


def network() -> Postcard:
    """One with seeded weights."""
    torch.manual_seed(0)
    return Postcard().eval().requires_grad_(False)


def levels() -> list[float]:
    """The noise levels that it was distilled at."""
    last = SHIFT * 0.001 / (1 + (SHIFT - 1) * 0.001)
    plain = [1.0 + i * (last - 1.0) / (STEPS - 1) for i in range(STEPS)]
    return [SHIFT * s / (1 + (SHIFT - 1) * s) for s in plain] + [0.0]


def vectors(net: Postcard) -> dict[str, Tensor]:
    """One picture from noise, and every call of the network on the way."""
    generator = torch.Generator().manual_seed(1)
    x = noise = torch.randn(1, 4, 8, 8, generator=generator)
    prompt, mask = torch.randn(1, 8, 32, generator=generator), torch.tensor([[1.0] * 5 + [0.0] * 3])
    rows: dict[str, list[Tensor]] = {"latent": [], "sigma": [], "text": [], "text_mask": [], "velocity": []}
    sigmas = levels()
    for sigma, following in itertools.pairwise(sigmas):
        level = torch.tensor([sigma])
        velocity = net(x, 1000 * level, prompt, mask)
        for name, value in zip(rows, (x, level, prompt, mask, velocity), strict=True):
            rows[name].append(value)
        x = x + (following - sigma) * velocity
    found = {f"student.{name}": torch.cat(values) for name, values in rows.items()}
    return found | {"pipeline.noise": noise, "pipeline.text": prompt, "pipeline.text_mask": mask, "pipeline.latent": x}


def write(folder: Path) -> None:
    """postcard.safetensors, postcard.json and postcard-golden.safetensors."""
    net = network()
    save_file(net.state_dict(), folder / "postcard.safetensors")
    save_file(vectors(net), folder / "postcard-golden.safetensors")
    (folder / "postcard.json").write_text(json.dumps(CONFIG, indent=2), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
