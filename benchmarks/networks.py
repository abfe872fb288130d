"""Networks with random weights, as bundles hold them: what the benchmarks export and time."""

from __future__ import annotations

import torch

from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.drawing.ports import ports_of
from snapgen_deploy.export.base import Component, Role
from snapgen_deploy.models import DiT, ModelConfig, TextEncoder, TinyDecoder
from snapgen_deploy.plan.make import make_plan
from snapgen_deploy.sparse import rewrite_decoder, rewrite_student, rewrite_text_encoder


def component(config: ModelConfig, width: str, size: tuple[int, int], key: str, role: Role = "student") -> Component:
    """One component for a picture of `size` pixels, spelled for a target of the token layout (`onnx:cpu` and the like)."""
    plan = make_plan(config, load_profile("android-mid"), targets=[key], width=width, resolution=size)
    inputs, outputs, doc = ports_of(config, plan, role)
    latent, target = (plan.latent[1], plan.latent[2]), plan.targets[0]
    writing = target.spec.writing
    ops = writing.ops_at(target.precision)
    if role == "student":
        module = rewrite_student(DiT(config.student, width), latent, layout="token", form=target.form, ops=ops)
    elif role == "decoder":
        assert config.decoder is not None
        module = rewrite_decoder(TinyDecoder(config.decoder), latent, layout="token", upsample=writing.upsample)
    else:
        assert config.text_encoder is not None
        module = rewrite_text_encoder(TextEncoder(config.text_encoder), layout="token", ops=ops)
    example = tuple(torch.ones(p.shape, dtype=torch.int32) if p.dtype == "int32" else torch.randn(p.shape) for p in inputs)
    return Component(role, module.eval(), inputs, outputs, example, doc)
