"""Networks with random weights, rewritten as for a bundle, which benchmarks export and time."""

from __future__ import annotations

import numpy as np
import torch

from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.export.base import Component, Role
from snapgen_deploy.families.component import Spelling
from snapgen_deploy.families.names import STUDENT
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.plan.make import make_plan


def component(config: ModelConfig, width: str, size: tuple[int, int], key: str, role: Role = STUDENT) -> Component:
    """One component for a picture of `size` (height, width), written for a target with the token layout, such as `onnx:cpu`."""
    plan = make_plan(config, load_profile("android-mid"), targets=[key], width=width, resolution=size)
    spec = components_of(config)[role]
    inputs, outputs, doc = spec.called(plan)
    latent, target = (plan.latent[1], plan.latent[2]), plan.targets[0]
    writing = target.spec.writing
    rows = spec.rows_in(plan.batch)
    how = Spelling("token", writing.ops_at(target.precision), writing.upsample, target.form, batch=rows)
    module = spec.rewrite(spec.build(width), latent, how)
    example = tuple(torch.ones(p.shape, dtype=torch.int32) if p.dtype == "int32" else torch.randn(p.shape) for p in inputs)
    return Component(role, module.eval(), inputs, outputs, example, doc)


def feed(component: Component) -> dict[str, np.ndarray]:
    """The example of a component by the names of its inputs."""
    return {port.name: value.numpy() for port, value in zip(component.inputs, component.example, strict=True)}
