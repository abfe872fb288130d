"""A second family: one module and one line in the registry take it through everything that general code does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from snapgen_deploy.bundle.reader import open_bundle
from snapgen_deploy.check import verify
from snapgen_deploy.checkpoint import checkpoint_state, open_checkpoint, save_checkpoint
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.base import Family
from snapgen_deploy.families.registry import FAMILIES
from snapgen_deploy.job import checked, convert, drawn
from snapgen_deploy.latency.measure.session import open_session
from snapgen_deploy.models import DecoderConfig, ModelConfig, TextEncoder, TextEncoderConfig, TextStream, TinyDecoder
from snapgen_deploy.models.tokenizer import WordTokenizer
from tests.cli.conftest import WORDS, in_this_process, invoke
from tests.families.toy import Toy, ToyConfig, ToyFamily

STUDENT = ToyConfig(latent_channels=4, latent_factor=8, hidden=16, time_features=16, text_streams=(TextStream("text", 16, 8),))
CONFIG = ModelConfig(
    STUDENT,
    DecoderConfig(latent_channels=4, channels=(16, 8, 8, 8), blocks=(1, 0, 0, 0), groups=4),
    TextEncoderConfig(vocab=len(WORDS) + 4, length=8, width=16, layers=1, heads=2),
    name="toy-test",
    resolution=(64, 64),
    prompts=("a red ring",),
    family="toy",
)


class WholeToy:
    """A student without widths is stored as it is."""

    def __init__(self, toy: Toy) -> None:
        self.toy = toy

    def elastic_state(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach() for name, tensor in self.toy.state_dict().items()}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    family: Family = ToyFamily()
    monkeypatch.setitem(FAMILIES, "toy", family)
    torch.manual_seed(0)
    assert CONFIG.decoder is not None
    assert CONFIG.text_encoder is not None
    state = checkpoint_state(WholeToy(Toy(STUDENT)), TinyDecoder(CONFIG.decoder), TextEncoder(CONFIG.text_encoder))
    path = tmp_path / "toy.safetensors"
    save_checkpoint(state, CONFIG, path, tokenizer=WordTokenizer.from_words(WORDS).to_json(), license="MIT")
    return path


def test_a_toy_family_goes_through_everything(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process(monkeypatch, modules=(drawn, convert, checked, verify))
    where = ("export", "--device", "iphone16pm", "--checkpoint", toy, "--target", "onnx", "-o", tmp_path, "--no-cache")
    plan = invoke(*where, "--dry-run", "--json")
    assert plan.exit_code == 0, plan.output
    assert json.loads(plan.stdout)["width"] == "only"
    done = invoke(*where, "--threads", 1)
    assert done.exit_code == 0, done.output
    bundle = open_bundle(tmp_path / "toy-test-iphone16pm")
    assert bundle.config == CONFIG
    assert bundle.manifest["config"]["family"] == "toy"
    gates = {(g["component"], g["name"]): g["verdict"] for g in bundle.manifest["gates"]}
    assert gates["student", "relative_error"] == gates["pipeline", "psnr"] == "passed"
    (target,) = bundle.manifest["targets"].values()
    assert target["components"]["student"]["macs"] > 0
    assert invoke("verify", bundle.path).exit_code == 0
    picture = tmp_path / "picture.png"
    assert invoke("generate", bundle.path, "--prompt", "a blue ring", "-o", picture).exit_code == 0
    assert picture.stat().st_size > 0
    times = open_session(bundle, "onnx:cpu", 1).query()
    assert {name: len(values) for name, values in times.items()} == {"e2e": 1, "text_encoder": 1, "student": 4, "decoder": 1}


def test_a_toy_family_is_shown_and_estimated(toy: Path) -> None:
    shown = json.loads(invoke("inspect", toy, "--json").stdout)
    assert shown["widths"]["only"]["hidden"] == STUDENT.hidden
    assert "hidden" in invoke("inspect", toy).stdout
    estimated = invoke("estimate", "--checkpoint", toy, "--device", "iphone16pm", "--json")
    assert estimated.exit_code == 0, estimated.output
    (row,) = json.loads(estimated.stdout)["estimates"]
    assert row["ms"] > 0


def test_sizes_of_a_toy_family_are_its_own(toy: Path, tmp_path: Path) -> None:
    where = ("export", "--device", "iphone16pm", "--checkpoint", toy, "--target", "onnx", "-o", tmp_path, "--dry-run")
    assert invoke(*where, "--resolution", "72x40").exit_code == 0  # 9 x 5 cells: no patches and no blocks to divide into
    refused = invoke(*where, "--resolution", "70")
    assert refused.exit_code == 2
    assert "70x70 does not fit latent factor 8; the nearest that do are 72x72" in " ".join(refused.output.split())


def test_an_unknown_family_is_one_line_that_lists_the_known_ones(toy: Path) -> None:
    FAMILIES.pop("toy")
    with pytest.raises(BadInput, match="family: got 'toy', expected one of elastic-dit"):
        open_checkpoint(toy)
