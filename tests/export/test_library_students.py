"""Students of diffusers as files: what was saved computes what the library does. Every class on every target is slow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from snapgen_deploy.export.base import Component, Description, Runner
from snapgen_deploy.export.registry import spec_of, target_of
from snapgen_deploy.families.component import VELOCITY, Spelling
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.golden.vectors import GoldenSize
from snapgen_deploy.models.config import ModelConfig
from snapgen_deploy.models.library_student import DiffusersStudent, library_output
from snapgen_deploy.models.schedule import timestep_features
from snapgen_deploy.models.students import LibraryStudent
from tests import library_students as cases

SIZE = (8, 8)  # of the latents
LIMITS = {"fp32": 1e-5, "fp16": 1e-2}


def saved(config: LibraryStudent, network: DiffusersStudent, key: str, folder: Path) -> tuple[Runner, Description, list[str]]:
    spec, target_spec = components_of(ModelConfig(config, None, None, family="diffusers")).denoiser, spec_of(key)
    precision, writing = target_spec.precisions[0], target_spec.writing
    module = spec.rewrite(network, SIZE, Spelling(target_spec.layout, writing.ops_at(precision), writing.upsample, "dense"))
    inputs, outputs, doc = spec.ports(GoldenSize("full", (64, 64), (config.latent_channels, *SIZE)))
    target, variant = target_of(key)
    component = Component("student", module, inputs, outputs, tuple(torch.ones(p.shape) for p in inputs), doc)
    artifact = target.export(component, variant, precision, folder, {})
    return target.open(artifact.path, threads=1), target.describe(artifact.path), [p.name for p in inputs]


@pytest.mark.parametrize("key", ["onnx:cpu", "executorch:xnnpack", "coreml"])
@pytest.mark.parametrize("name", cases.CASES)
@pytest.mark.slow
def test_every_class_on_every_target(name: str, key: str, tmp_path: Path) -> None:
    config = cases.config_of(name)
    whole, reference = cases.pair(config)
    text, timestep = cases.texts(config), torch.tensor([400.0])
    latent = torch.randn(1, config.latent_channels, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = library_output(whole, config, latent, timestep, text)
    run, told, names = saved(config, reference, key, tmp_path)
    given = [latent, timestep_features(timestep, config.time_features), *cases.as_inputs(config, text)]
    got = run({n: v.numpy() for n, v in zip(names, given, strict=True)})[VELOCITY]
    assert cases.relative(torch.from_numpy(np.array(got)), expected) < LIMITS[spec_of(key).precisions[0]]
    if key == "executorch:xnnpack":
        assert (told.placement["XnnpackBackend"], told.portable_ops) == (1, {})
