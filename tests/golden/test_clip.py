"""A text encoder of transformers under our names: it fits every name and shape, and is another network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from snapgen_deploy.check.causes import find_cause, golden_error
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.golden import GoldenCases, Recorder
from snapgen_deploy.golden.vectors import open_golden
from tests.cli.conftest import tiny_config

transformers = pytest.importorskip("transformers")

NAMES = {
    "embeddings.token_embedding": "tokens", "layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.q_proj": "q",
    "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.out_proj": "out", "mlp.fc1": "up", "mlp.fc2": "down",
    "final_layer_norm": "norm", "encoder.layers": "blocks", "embeddings.position_embedding.weight": "positions",
}  # fmt: skip
Encoder = Callable[[str], Any]


@pytest.fixture
def clip() -> Encoder:
    """A seeded text encoder with an activation of this name."""

    def made(activation: str) -> Any:
        torch.manual_seed(0)
        config = transformers.CLIPTextConfig(
            vocab_size=14, hidden_size=16, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=16, hidden_act=activation, initializer_factor=20.0,
        )  # fmt: skip
        return transformers.CLIPTextModel(config).eval()

    return made


def renamed(model: Any) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in model.text_model.state_dict().items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        found[name] = tensor
    found.pop("embeddings.position_ids", None)
    return found


def recorded(model: Any, path: Path) -> GoldenCases:
    recorder = Recorder()
    tokens = torch.randint(0, 14, (2, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[1, 9:] = 0
    names = {"tokens": "input_ids", "mask": "attention_mask"}
    layers = {"blocks.0": model.text_model.encoder.layers[0]}
    watching = recorder.watch("text_encoder", model, inputs=names, output=("text", "last_hidden_state"), layers=layers)
    with watching, torch.no_grad():
        model(input_ids=tokens, attention_mask=mask)
    recorder.save(path)
    return open_golden(path, tiny_config()).cases["text_encoder"]


@pytest.mark.parametrize(("activation", "named"), [("quick_gelu", "quick_gelu"), ("gelu", "GELU"), ("silu", "SiLU")])
def test_a_clip_encoder_is_refused_and_its_cause_is_named(clip: Encoder, tmp_path: Path, activation: str, named: str) -> None:
    model, spec = clip(activation), components_of(tiny_config())["text_encoder"]
    network = spec.build("").eval()
    network.load_state_dict(renamed(model))
    cases = recorded(model, tmp_path / "clip.safetensors")
    assert golden_error(spec, network, cases.rows()) > 0.05
    cause = find_cause(spec, network, cases, 1e-4, 20.0)
    assert cause.agrees
    assert {(v.kind, v.theirs) for v in cause.changes} == {("mask", "causal mask"), ("activation", named)}
    assert cause.error < 1e-5
    assert cause.layer.startswith("blocks.0 (")
