"""From a checkpoint and a plan to the networks that a target exports: sliced, rewritten, with named ports."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.checkpoint.networks import load_decoder, load_student, load_text_encoder
from snapgen_deploy.drawing.ports import ports_of
from snapgen_deploy.export.base import Component, Role
from snapgen_deploy.models import DiT
from snapgen_deploy.plan.plan import ExportPlan, TargetPlan
from snapgen_deploy.quantise.layers import layers_of
from snapgen_deploy.quantise.recipe import Recipe
from snapgen_deploy.sparse import Layout, norm_scales, rewrite_decoder, rewrite_student, rewrite_text_encoder


def build_component(
    checkpoint: Checkpoint, plan: ExportPlan, target: TargetPlan, role: Role, recipe: Recipe | None = None
) -> Component:
    """Load one component at the plan's width and rewrite it for the target's layout and kernel form.

    With a `recipe` the student gets its palettes and tuned values; decoder and text encoder are as without.
    """
    inputs, outputs, doc = ports_of(checkpoint.config, plan, role)
    layout: Layout = "channels" if target.layout == "channels" else "token"
    writing = target.spec.writing
    ops = writing.ops_at(target.precision)
    latent = (plan.latent[1], plan.latent[2])
    palettes: dict[str, int] = {}
    if role == "student":
        student = load_student(checkpoint, plan.width)
        if recipe is not None:
            recipe.apply(student)
        form, kept = target.form, recipe is not None
        module = rewrite_student(student, latent, layout=layout, form=form, ops=ops, keep_weights=kept)
        if recipe is not None:
            palettes = palette_bits(student, module, recipe.bits)
    elif role == "decoder":
        decoder = load_decoder(checkpoint)
        module = rewrite_decoder(decoder, latent, layout=layout, upsample=writing.upsample, scales=norm_scales(decoder))
    else:
        # the student's form of attention matters to large maps only
        module = rewrite_text_encoder(load_text_encoder(checkpoint), layout=layout, ops=ops, form=writing.text_form)
    example = tuple(torch.zeros(p.shape, dtype=torch.int32) if p.dtype == "int32" else torch.ones(p.shape) for p in inputs)
    return Component(role, module.eval(), inputs, outputs, example, doc, palettes=palettes)


def palette_bits(student: DiT, module: torch.nn.Module, bits: Mapping[str, int]) -> dict[str, int]:
    """Bits by the names of the rewritten network's tensors that hold the weights of the student's layers `bits`.

    Most are the student's own tensors; the others lie below the layer's name, in another order or in parts. RuntimeError where
    a layer did not come through with its own values, each as often as it has weights.
    """
    layers, found = layers_of(student), dict[str, int]()
    tensors = dict((*module.named_parameters(), *module.named_buffers()))
    own = {tensor.data_ptr(): name for name, tensor in tensors.items()}
    for layer, b in bits.items():
        weight = layers[layer].weight.detach()
        names = [own[weight.data_ptr()]] if weight.data_ptr() in own else _below(layer, tensors)
        values = torch.cat([tensors[name].detach().flatten() for name in names] or [weight.new_empty(0)])
        if values.numel() != weight.numel() or not torch.isin(values, weight.unique()).all():
            raise RuntimeError(f"the quantised weight of {layer} did not come through the rewrite as it was")
        found |= dict.fromkeys(names, b)
    return found


def _below(layer: str, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of a layer's tensors but its bias."""
    return [name for name in tensors if name.startswith(f"{layer}.") and not name.endswith("bias")]
