"""Networks whose sizes divide into no quantiser's blocks: exported whole, with a warning, at full length."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from snapgen_deploy.checkpoint.initial import write_initial
from snapgen_deploy.export.base import left_whole
from snapgen_deploy.export.precisions import PRECISIONS
from snapgen_deploy.models import DecoderConfig, DiTConfig, ModelConfig, TextEncoderConfig, TextStream
from snapgen_deploy.plan import plan
from tests.cli.conftest import invoke


def odd_config() -> ModelConfig:
    student = DiTConfig(
        latent_channels=4, hidden=120, head_dim=12, kv_group=2, depths=(1, 2, 1), ffn_ratios=(3, 3, 3), blocks=5,
        text_streams=(TextStream("text", 60, 40),), text_width=60, cross_dim=36, widths={"narrow": 0.6, "full": 1.0},
    )  # fmt: skip
    decoder = DecoderConfig(latent_channels=4, channels=(40, 24, 24, 8), blocks=(1, 1, 1, 0))
    encoder = TextEncoderConfig(vocab=64, length=40, width=60, layers=2, heads=5)
    return ModelConfig(student, decoder, encoder, name="odd", resolution=(64, 160))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "precision"),
    [
        ("coreml", "int4"),
        ("coreml", "palette4-grouped"),
        ("executorch:xnnpack", "int4-dynamic"),
        ("executorch:coreml", "int4"),
        ("onnx:cpu", "int4"),
        ("coreai", "int4"),
    ],
)
def test_layers_that_do_not_divide_stay_and_are_named(
    target: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Seeded weights in few bits lose more of a picture than trained ones where a target takes the layers: its mean is free."""
    limits = replace(PRECISIONS[precision].limits, mean_psnr=0.0)
    monkeypatch.setattr(plan, "PRECISIONS", {**PRECISIONS, precision: replace(PRECISIONS[precision], limits=limits)})
    (tmp_path / "odd").mkdir()
    write_initial(odd_config(), tmp_path / "odd")
    result = invoke(
        "export", "--device", "iphone16pm", "--checkpoint", tmp_path / "odd", "--target", target, "--precision", precision,
        "--width", "full", "--fidelity-samples", 1, "--no-cache", "--json", "-o", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    components = data["targets"][target]["components"]
    whole = [role.replace("_", " ") for role, c in components.items() if left_whole(c["skipped"], c["weights"].values())]
    assert sorted(line.partition(f"{target} ")[2].partition(":")[0] for line in data["warnings"]) == sorted(whole)
    # ONNX pads the last block of a row, so that it may take every layer of a component
    assert all(c["skipped"] or c["average_bits"] < 6 for c in components.values()), data["targets"]
