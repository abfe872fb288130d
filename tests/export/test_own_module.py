"""A student of a user's own class as files. Every target is slow."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from snapgen_deploy.checkpoint import CheckpointPlace
from snapgen_deploy.checkpoint.networks import load_component
from snapgen_deploy.export.base import Component
from snapgen_deploy.export.registry import spec_of, target_of
from snapgen_deploy.families.component import VELOCITY, Spelling
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.golden.vectors import open_golden
from tests.own_module import POSTCARD, example_paths

LIMITS = {"fp32": 1e-5, "fp16": 1e-2}


@pytest.mark.parametrize("key", ["onnx:cpu", "executorch:xnnpack", "coreml"])
@pytest.mark.slow
def test_every_target_computes_what_the_module_does(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*example_paths(tmp_path / "site"), *sys.path])
    from postcard_student.write import write

    write(tmp_path)
    place = CheckpointPlace(tmp_path / "postcard.safetensors", config=tmp_path / "postcard.json", module=POSTCARD)
    opened = place.open()
    golden = open_golden(tmp_path / "postcard-golden.safetensors", opened.config)
    spec, network, told = components_of(opened.config).denoiser, load_component(opened, "student", "full"), spec_of(key)
    precision, writing = told.precisions[0], told.writing
    module = spec.rewrite(network, (8, 8), Spelling(told.layout, writing.ops_at(precision), writing.upsample, "dense"))
    inputs, outputs, doc = spec.ports(golden.drawing)
    target, variant = target_of(key)
    component = Component("student", module, inputs, outputs, tuple(torch.ones(p.shape) for p in inputs), doc)
    artifact = target.export(component, variant, precision, tmp_path, {})
    run, saved = target.open(artifact.path, threads=1), target.describe(artifact.path)
    for given, expected in golden.cases["student"].rows():
        got, wanted = torch.from_numpy(run(given)[VELOCITY].copy()), torch.from_numpy(expected[VELOCITY])
        assert float((got - wanted).norm() / wanted.norm()) < LIMITS[precision]
    if key == "executorch:xnnpack":
        assert (saved.placement["XnnpackBackend"], saved.portable_ops) == (1, {})
