"""Decoders of diffusers as files: what was saved computes what the library decodes. Every class on every target is slow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.decoders import PUBLISHED, Case, convert, decode_by_library
from benchmarks.decoders import run as run_saved
from snapgen_deploy.errors import GateFailed
from snapgen_deploy.export.base import Component, Description, Runner
from snapgen_deploy.export.registry import spec_of, target_of
from snapgen_deploy.families.component import LATENT, PICTURE, Spelling
from snapgen_deploy.families.library_decoder import library_decoder
from snapgen_deploy.golden.vectors import GoldenSize
from snapgen_deploy.models.config import LibraryDecoder
from snapgen_deploy.models.library_decoder import DiffusersDecoder, library_decode
from tests import library_decoders as cases

SIZE = (6, 5)  # of the latents
LIMITS = {"fp32": 1e-5, "fp16": 5e-3}


def saved(config: LibraryDecoder, network: DiffusersDecoder, key: str, folder: Path) -> tuple[Runner, Description]:
    spec, target_spec = library_decoder(config), spec_of(key)
    drawing = GoldenSize("", (SIZE[0] * network.facts.factor, SIZE[1] * network.facts.factor), (4, *SIZE))
    precision, writing = target_spec.precisions[0], target_spec.writing
    module = spec.rewrite(network, SIZE, Spelling(target_spec.layout, writing.ops_at(precision), writing.upsample, "loop"))
    inputs, outputs, doc = spec.ports(drawing)
    target, variant = target_of(key)
    component = Component("decoder", module, inputs, outputs, (torch.ones(inputs[0].shape),), doc)
    artifact = target.export(component, variant, precision, folder, {})
    return target.open(artifact.path, threads=1), target.describe(artifact.path)


def error(run: Runner, latent: torch.Tensor, expected: torch.Tensor) -> float:
    return cases.relative(torch.from_numpy(np.array(run({LATENT: latent.numpy()})[PICTURE])), expected)


def check(name: str, key: str, folder: Path) -> Description:
    config = cases.config_of(name)
    whole, reference = cases.pair(config)
    run, description = saved(config, reference, key, folder)
    latent = cases.latents(config, SIZE)
    assert error(run, latent, library_decode(whole, config, latent)) < LIMITS[spec_of(key).precisions[0]]
    return description


def test_a_decoder_of_videos_is_one_delegate_without_five_axes(tmp_path: Path) -> None:
    assert check("qwen", "executorch:xnnpack", tmp_path).placement == {"XnnpackBackend": 1, "portable": 0}


def test_linear_attention_on_a_server(tmp_path: Path) -> None:
    check("dc", "onnx:cpu", tmp_path)


def test_large_maps_fit_half_precision_and_too_large_ones_are_told(tmp_path: Path) -> None:
    config = cases.config_of("kl")
    whole, reference = cases.pair(config)
    for network in (whole.decoder, reference.decoder):
        network.conv_in.weight.mul_(1000.0)  # of the sum that all blocks add to
    run, description = saved(config, reference, "coreml", tmp_path)
    latent = cases.latents(config, SIZE)
    assert error(run, latent, library_decode(whole, config, latent)) < LIMITS["fp16"]
    assert description.lint == {}
    with pytest.raises(GateFailed, match="fp16 overflows or is not a number"):
        run({LATENT: (latent * 50.0).numpy()})


@pytest.mark.slow
@pytest.mark.parametrize("key", ["onnx:cpu", "coreml", "executorch:xnnpack"])
@pytest.mark.parametrize("name", cases.CASES)
def test_every_class_on_every_target(name: str, key: str, tmp_path: Path) -> None:
    description = check(name, key, tmp_path)
    assert description.portable_ops == {}
    assert description.lint == {}


@pytest.mark.slow
@pytest.mark.parametrize("key", ["onnx:cpu", "coreml", "executorch:xnnpack"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_at_full_width(name: str, key: str, tmp_path: Path) -> None:
    """Seeded weights, small pictures: `python -m benchmarks.decoders` has larger ones."""
    case = Case(name, 64, tmp_path, 1)
    decode_by_library(case)
    _, path, _, outside = convert(case, key)
    error_of_file, _ = run_saved(case, key, path)
    assert error_of_file < {"fp32": 2e-5, "fp16": 5e-3}[spec_of(key).precisions[0]]
    assert outside == 0
