"""SnapGen's U-Net goes through the commands as any family does: plan, export with its gates, inspect, estimate."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from snapgen_deploy.bundle.reader import open_bundle
from snapgen_deploy.check import verify
from snapgen_deploy.checkpoint import checkpoint_state, save_checkpoint
from snapgen_deploy.checkpoint.initial import initial_tensor
from snapgen_deploy.families.registry import components_of, family_of
from snapgen_deploy.families.unet import UNetFamily
from snapgen_deploy.job import checked, convert, drawn
from snapgen_deploy.models import PRESETS, DecoderConfig, ModelConfig, TextEncoder, TextEncoderConfig, TextStream, TinyDecoder
from snapgen_deploy.models.tokenizer import WordTokenizer
from snapgen_deploy.models.unet import UNet
from snapgen_deploy.models.unet_config import UNetConfig
from tests.cli.conftest import WORDS, in_this_process, invoke

STUDENT = UNetConfig(
    latent_channels=4, channels=(8, 16), blocks=(0, 1), residuals=1, groups=4, head_dim=8, time_features=16, time_width=12,
    text_streams=(TextStream("text", 16, 8),), text_width=16,
)  # fmt: skip
DECODER = DecoderConfig(latent_channels=4, channels=(16, 8, 8, 8), blocks=(1, 0, 0, 0), groups=4)
ENCODER = TextEncoderConfig(vocab=len(WORDS) + 4, length=8, width=16, layers=1, heads=2)
CONFIG = ModelConfig(
    STUDENT, DECODER, ENCODER, name="unet-test", resolution=(64, 64), prompts=("a red ring",), family="unet",
)  # fmt: skip
Once = Callable[[str, Callable[[Path], object]], Path]


def write(path: Path) -> None:
    torch.manual_seed(0)
    net, spec = UNet(STUDENT), components_of(CONFIG).denoiser
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            tensor.copy_(initial_tensor(spec, name, tuple(tensor.shape), 0))
    state = checkpoint_state(net, TinyDecoder(DECODER), TextEncoder(ENCODER))
    save_checkpoint(state, CONFIG, path, tokenizer=WordTokenizer.from_words(WORDS).to_json(), license="MIT")


@pytest.fixture
def unet(once: Once) -> Path:
    return once("unet", lambda folder: write(folder / "unet.safetensors")) / "unet.safetensors"


def test_an_export_passes_its_gates(unet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process(monkeypatch, modules=(drawn, convert, checked, verify))
    where = ("export", "--device", "iphone16pm", "--checkpoint", unet, "--target", "onnx", "-o", tmp_path, "--no-cache")
    done = invoke(*where, "--threads", 1)
    assert done.exit_code == 0, done.output
    bundle = open_bundle(tmp_path / "unet-test-iphone16pm")
    assert (bundle.config, bundle.manifest["config"]["family"]) == (CONFIG, "unet")
    assert {g["verdict"] for g in bundle.manifest["gates"]} <= {"passed", "not run"}
    (target,) = bundle.manifest["targets"].values()
    assert target["components"]["student"]["macs"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["default", "int8", "mixed"])
def test_every_target_of_a_phone_passes_its_gates(unet: Path, tmp_path: Path, precision: str) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(" ".join(words) for words in itertools.islice(itertools.permutations(WORDS, 3), 16)))
    quick = ("--calibration", texts, "--tune-iterations", 5, "--calibration-pictures", 16, "--fidelity-samples", 6)
    chosen: dict[str, tuple[object, ...]] = {"default": (), "int8": ("--target", "coreml", "--precision", "int8")}
    chosen["mixed"] = ("--target", "coreml", "--precision", "mixed", *quick)
    done = invoke("export", "--device", "iphone16pm", "--checkpoint", unet, "-o", tmp_path, "--no-cache", *chosen[precision])
    assert done.exit_code == 0, done.output
    bundle = open_bundle(tmp_path / "unet-test-iphone16pm")
    for key, target in bundle.manifest["targets"].items():
        about = target["components"]["student"]
        if key.startswith("executorch"):
            assert (about["placement"]["XnnpackBackend"], about["portable_ops"]) == (1, {})


def test_it_is_shown_and_estimated_and_planned(unet: Path, tmp_path: Path) -> None:
    shown = json.loads(invoke("inspect", unet, "--json").stdout)
    assert shown["widths"]["full"]["hidden"] == 16
    estimated = invoke("estimate", "--checkpoint", unet, "--device", "iphone16pm", "--json")
    assert estimated.exit_code == 0, estimated.output
    assert json.loads(estimated.stdout)["estimates"][0]["ms"] > 0
    where = ("export", "--device", "iphone16pm", "--checkpoint", unet, "-o", tmp_path, "--dry-run")
    assert invoke(*where, "--resolution", "80x48").exit_code == 0
    refused = invoke(*where, "--resolution", "72")
    assert refused.exit_code == 2
    assert "72x72 does not fit latent factor 8 and 2 levels" in " ".join(refused.output.split())


@pytest.mark.parametrize(("steps", "levels"), [(4, (1.0, 0.9, 0.75, 0.5, 0.0)), (8, None)])
def test_it_draws_in_four_or_eight_steps(steps: int, levels: tuple[float, ...] | None) -> None:
    config = replace(PRESETS["snapgen"](), steps=steps)
    found = family_of(config).schedule(config).sigmas
    assert len(found) == steps + 1
    assert levels is None or found == levels


def test_its_activations_grow_with_the_picture_and_hold_the_skips() -> None:
    spec = components_of(PRESETS["snapgen"]()).denoiser
    small, large = (spec.activations("full", (16, side, side), (8 * side, 8 * side)) for side in (64, 128))
    assert large > 3 * small
    assert large > 4 * 3 * 256 * 128 * 128  # the skips of the highest level alone


def test_its_examples_run() -> None:
    for ops in ("spelled", "native"):
        for layer in UNetFamily().examples(ops):  # type: ignore[arg-type]
            assert layer.module(*(torch.ones(shape) for shape in layer.shapes)).shape == layer.shapes[0]
