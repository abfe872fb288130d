"""The reference held against golden vectors: it agrees with its own, and a cause is named for each that are not its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapgen_deploy.check.golden import GoldenTask, HeldReference, hold_reference
from snapgen_deploy.checkpoint import Checkpoint, CheckpointPlace
from snapgen_deploy.golden import open_golden
from tests.golden.golden_cases import write_changed


def held(checkpoint: Checkpoint, path: Path, width: str = "small") -> HeldReference:
    vectors = open_golden(path, checkpoint.config, tokenizers=checkpoint.tokenizers)
    return hold_reference(GoldenTask(CheckpointPlace(checkpoint.path), width, vectors, 1, 20.0))


def test_the_reference_agrees_with_itself(tiny: Checkpoint, golden: Path) -> None:
    found = held(tiny, golden)
    gates = {(g.target, g.component, g.name): g for g in found.gates}
    parts = [
        ("text_encoder", "error"),
        ("student", "error"),
        ("decoder", "error"),
        ("text_encoder", "tokens"),
        ("pipeline", "psnr"),
    ]
    assert [*gates] == [("reference", part, f"golden_{name}") for part, name in parts]
    assert {g.verdict for g in found.gates} == {"passed"}
    assert gates["reference", "student", "golden_error"].value == 0
    assert found.causes == {}


@pytest.mark.parametrize(
    ("role", "names", "said"),
    [
        (
            "text_encoder",
            ["mask: causal", "activation: quick_gelu"],
            "causal mask (here every token sees all); activation: quick",
        ),
        ("text_encoder", ["norm placement: norm after"], "norm placement: norm after attention and MLP"),
        (
            "text_encoder",
            ["q, k, v of attention: q and v swapped"],
            "q and v swapped (here q, k, v); exchange them in the key map",
        ),
        ("text_encoder", ["heads: 4"], "heads: 4 heads (here 2 heads); set its heads to 4"),
        ("text_encoder", ["padding: "], "padding: padding is seen"),
        ("student", ["RoPE: channel 2i"], "RoPE: channel 2i paired with 2i + 1 (here channel i paired with i + d/2)"),
        ("student", ["activation of the FFN: SiLU"], "activation of the FFN: SiLU (here tanh GELU)"),
        ("student", ["modulation: scale before"], "modulation: scale before shift"),
        (
            "student",
            ["gate of ASSA", "absolute positions"],
            "gate of ASSA: g weighs the local side (here g weighs the global side)",
        ),
        ("student", ["radius: radius 0"], "set student.radius to 0"),
        ("student", ["q, k, v of cross-attention: k and v swapped"], "cross-attention: k and v swapped"),
        ("student", ["norm placement"], "LayerNorm before cross-attention"),
        ("student", ["time features"], "time features: sines first"),
        ("decoder", ["scale and shift of latents: latent / 1.5305"], "latent / 1.5305 + 0.0609 (SD 3)"),
        ("decoder", ["pixel range: pixels in [0, 1]"], "pixel range: pixels in [0, 1] in the file"),
        ("decoder", ["activation: ReLU", "groups: 2"], "activation: ReLU"),
    ],
)
def test_causes_are_named(tiny: Checkpoint, golden: Path, tmp_path: Path, role: str, names: list[str], said: str) -> None:
    found = held(tiny, write_changed(tiny, golden, tmp_path / "g.safetensors", role, names))
    assert [(g.component, g.verdict) for g in found.gates] == [(role, "failed")]
    assert "it agrees to" in found.causes[role]
    assert said in found.causes[role]
