"""From a checkpoint and a plan to the networks that a target exports: sliced, rewritten, with named ports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.elastic import load_decoder, load_student, load_text_encoder
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import ROLES, Component, Layout, Port, Role
from snapgen_deploy.models import DiT, ModelConfig
from snapgen_deploy.plan import ExportPlan, TargetPlan
from snapgen_deploy.quantise.layers import layers_of
from snapgen_deploy.quantise.recipe import Recipe
from snapgen_deploy.sparse import OpForm, UpsampleForm, norm_scales, rewrite_decoder, rewrite_student, rewrite_text_encoder


def roles_of(config: ModelConfig) -> tuple[Role, ...]:
    """The components that a checkpoint of this configuration holds, in the order in which a picture uses them."""
    there = {"student": True, "decoder": config.decoder is not None, "text_encoder": config.text_encoder is not None}
    return tuple(role for role in ROLES if there[role])


def build_component(
    checkpoint: Checkpoint, plan: ExportPlan, target: TargetPlan, role: Role, recipe: Recipe | None = None
) -> Component:
    """Load one component at the plan's width and rewrite it for the target's layout and kernel form.

    With a `recipe` the student gets its palettes and tuned values; decoder and text encoder are as without.
    """
    inputs, outputs, doc = ports_of(checkpoint.config, plan, role)
    layout: Layout = "channels" if target.layout == "channels" else "token"
    ops, upsample = spelling(target.key, target.precision)
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
        module = rewrite_decoder(decoder, latent, layout=layout, upsample=upsample, scales=norm_scales(decoder))
    else:
        # the student's form of attention matters to large maps; onnx:qnn has no Einsum, which the split form is made of
        form = "batched" if target.key == "onnx:qnn" else "per_head"
        module = rewrite_text_encoder(load_text_encoder(checkpoint), layout=layout, ops=ops, form=form)
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


def spelling(target: str, precision: str) -> tuple[OpForm, UpsampleForm | None]:
    """How a target (by its key) has networks written: operations of the token layout, and upsampling (None: the layout's)."""
    if target.partition(":")[0] == "onnx":
        return "native", "native"  # onnxruntime fuses whole norms; the delegates of phones take them only spelled out
    # Vulkan's delegate takes whole norms, too, and then does not load those without a weight (executorch 1.4.1).
    return "half" if precision == "fp16" else "spelled", "native" if target == "executorch:vulkan" else None


class Drawing(Protocol):
    """What ports depend on beside the configuration; a plan and a bundle have it."""

    @property
    def width(self) -> str:
        """The sub-network's name."""

    @property
    def resolution(self) -> tuple[int, int]:
        """Picture height and width."""

    @property
    def latent(self) -> tuple[int, int, int]:
        """Channels, height and width."""


def ports_of(config: ModelConfig, plan: Drawing, role: Role) -> tuple[tuple[Port, ...], tuple[Port, ...], str]:
    """Inputs, outputs and a one-line description of a component."""
    latent_shape = (1, *plan.latent)
    latent = Port("latent", latent_shape, "float32", "latent, normalised per channel; standard normal noise at the first step")
    if role == "student":
        features = Port(
            "time_features",
            (1, config.student.time_features),
            "float32",
            "features of the noise level, from the bundle's schedule",
        )
        text = []
        for s in config.student.text_streams:
            text.append(Port(s.name, (1, s.length, s.dim), "float32", f"embeddings of the text stream '{s.name}'"))
            text.append(Port(f"{s.name}_mask", (1, s.length), "float32", "1 where there is a token, 0 at padding"))
        velocity = Port(
            "velocity", latent_shape, "float32", "noise minus picture; next latent = latent + (next - sigma) * velocity"
        )
        return (latent, features, *text), (velocity,), f"one denoising step, sub-network '{plan.width}'"
    if role == "decoder":
        picture = Port("picture", (1, 3, *plan.resolution), "float32", "red, green, blue in -1 ... 1 (clamp before use)")
        return (latent,), (picture,), "latent to picture"
    encoder = config.text_encoder
    if encoder is None:
        raise BadInput("this checkpoint has no text encoder")
    tokens = Port("tokens", (1, encoder.length), "int32", "token ids from tokenizer.json, padded")
    mask = Port("mask", (1, encoder.length), "float32", "1 where there is a token, 0 at padding")
    out = Port(encoder.stream, (1, encoder.length, encoder.width), "float32", "token embeddings")
    return (tokens, mask), (out,), "prompt tokens to embeddings"
