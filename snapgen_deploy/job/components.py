"""Builds the networks that a target exports from a checkpoint and a plan: sliced, rewritten, with named ports."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.checkpoint.networks import load_component, load_on_disk, stays_on_disk
from snapgen_deploy.export.base import Component, Role
from snapgen_deploy.families.component import Spelling
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.plan.plan import ExportPlan, TargetPlan
from snapgen_deploy.quantise.layers import layers_of
from snapgen_deploy.quantise.recipe import Recipe
from snapgen_deploy.sparse import Layout


def build_component(
    checkpoint: Checkpoint, plan: ExportPlan, target: TargetPlan, role: Role, recipe: Recipe | None = None
) -> Component:
    """Load one component at the plan's width and rewrite it for the target's layout and kernel form.

    With a `recipe`, the component that takes one gets its palettes and tuned values; other components are not changed by it. A
    network that stays on disk is loaded without its large tensors, if the target stores them one by one.
    """
    spec = components_of(checkpoint.config)[role]
    inputs, outputs, doc = spec.called(plan)
    layout: Layout = "channels" if target.layout == "channels" else "token"
    writing = target.spec.writing
    ops = writing.ops_at(target.precision)
    recipe = recipe if spec.takes_recipe else None
    apart = stays_on_disk(spec, plan.width) and target.precision in target.spec.by_tensor
    source = load_on_disk(checkpoint, role, plan.width) if apart else None
    network = load_component(checkpoint, role, plan.width, held=True) if source is None else source.network
    if recipe is not None:
        recipe.apply(network)
    rows, keep = spec.rows_in(plan.batch), recipe is not None
    how = Spelling(layout, ops, writing.upsample, target.form, writing.text_form, keep_weights=keep, batch=rows)
    module = spec.rewrite(network, (plan.latent[1], plan.latent[2]), how)
    palettes = {} if recipe is None else palette_bits(network, module, recipe.bits)
    example = tuple(torch.zeros(p.shape, dtype=torch.int32) if p.dtype == "int32" else torch.ones(p.shape) for p in inputs)
    on_disk = {} if source is None else source.of(module)
    return Component(role, module.eval(), inputs, outputs, example, doc, palettes=palettes, on_disk=on_disk)


def palette_bits(student: torch.nn.Module, module: torch.nn.Module, bits: Mapping[str, int]) -> dict[str, int]:
    """Bits per weight for the tensors of the rewritten network, from the bits per layer of the student.

    Most tensors are the student's own. Others carry the layer's name as a prefix, with their values reordered, split, or
    repeated for each row of a batch.

    Raises:
        RuntimeError: if the rewrite changed the number or the values of a layer's weights.
    """
    layers, found = layers_of(student), dict[str, int]()
    tensors = dict((*module.named_parameters(), *module.named_buffers()))
    own = {tensor.data_ptr(): name for name, tensor in tensors.items()}
    for layer, b in bits.items():
        weight = layers[layer].weight.detach()
        names = [own[weight.data_ptr()]] if weight.data_ptr() in own else _below(layer, tensors)
        values = torch.cat([tensors[name].detach().flatten() for name in names] or [weight.new_empty(0)])
        if values.numel() % weight.numel() or not values.numel() or not torch.isin(values, weight.unique()).all():
            raise RuntimeError(f"the quantised weight of {layer} did not come through the rewrite as it was")
        found |= dict.fromkeys(names, b)
    return found


def _below(layer: str, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of a layer's tensors, without its bias."""
    return [name for name in tensors if name.startswith(f"{layer}.") and not name.endswith("bias")]
