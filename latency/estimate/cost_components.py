"""The operations of a picture: text encoder, one step of the student, decoder, as a target would export them for a width.

Built on the meta device from the configuration alone: neither a checkpoint nor memory for weights is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.registry import spec_of
from snapgen_deploy.latency.estimate.cost import OpCost, trace_module
from snapgen_deploy.models import DiT, ModelConfig, TextEncoder, TinyDecoder
from snapgen_deploy.models.config import DiTConfig
from snapgen_deploy.plan.sizes import latent_of
from snapgen_deploy.plan.targets import local_form
from snapgen_deploy.plan.widths import WEIGHT_BYTES
from snapgen_deploy.sparse import Layout, OpForm, UpsampleForm, rewrite_decoder, rewrite_student, rewrite_text_encoder

Ops = tuple[OpCost, ...]


@dataclass(frozen=True)
class Spelling:
    """How a target spells a network: what `components.build_component` does for it."""

    layout: Layout
    element: int  # bytes of a number
    ops: OpForm
    upsample: UpsampleForm | None


@dataclass(frozen=True)
class Costs:
    """The operations of each component; empty where a checkpoint lacks it."""

    text_encoder: Ops
    student: Ops  # one step
    decoder: Ops


def spelling_of(target: str) -> Spelling:
    """The spelling of `name` or `name:variant` at its default precision; BadInput for a target that is not known.

    Activations of w8a16 are 16 bits, as fp16's are.
    """
    spec = spec_of(target)
    precision, writing = spec.precisions[0], spec.writing
    return Spelling(spec.layout, int(WEIGHT_BYTES[precision]), writing.ops_at(precision), writing.upsample)


def picture_costs(config: ModelConfig, width: str, resolution: tuple[int, int], target: str) -> Costs:
    """Trace all components at a width and picture size, as `target` exports them."""
    how, latent = spelling_of(target), latent_of(config, resolution)[1:]
    if width not in config.student.widths:
        raise BadInput(f"no width '{width}': expected one of {', '.join(config.student.widths)}")
    with torch.device("meta"):
        student = DiT(config.student, width)
    form = local_form(config, (config.student.latent_channels, *latent))
    return Costs(text_costs(config, how), student_costs(student, latent, how, form), decoder_costs(config, latent, how))


def student_costs(dit: DiT, latent: tuple[int, int], how: Spelling, form: str) -> Ops:
    """One step. Where the graph folds the query heads of a group into one matrix of scores, a `tile` is still one head's:
    nothing forces a runtime to hold a group's at once. Heads of cross-attention have no groups."""
    config: DiTConfig = dit.config
    with torch.device("meta"), torch.no_grad():
        module = rewrite_student(dit, latent, layout=how.layout, form=form, ops=how.ops)
        example: list[Tensor] = [torch.zeros(1, config.latent_channels, *latent), torch.zeros(1, config.time_features)]
        for s in config.text_streams:
            example += [torch.zeros(1, s.length, s.dim), torch.zeros(1, s.length)]
    found = trace_module(module, example, how.element)
    rows, cols = config.grid(*latent)
    text = sum(s.length for s in config.text_streams)
    cross = {tokens * text * how.element for tokens in (rows * cols, rows * cols // 4)}
    folded = 1 if (how.layout, form) == ("channels", "per_head") else config.kv_group
    return tuple(replace(o, tile=max(1, o.tile // folded)) if o.tile and o.tile not in cross else o for o in found)


def decoder_costs(config: ModelConfig, latent: tuple[int, int], how: Spelling) -> Ops:
    """The decoder once."""
    if config.decoder is None:
        return ()
    with torch.device("meta"):
        module = rewrite_decoder(TinyDecoder(config.decoder), latent, layout=how.layout, upsample=how.upsample)
        example = torch.zeros(1, config.decoder.latent_channels, *latent)
    return trace_module(module, [example], how.element)


def text_costs(config: ModelConfig, how: Spelling) -> Ops:
    """The text encoder once."""
    encoder = config.text_encoder
    if encoder is None:
        return ()
    with torch.device("meta"):
        module: nn.Module = rewrite_text_encoder(TextEncoder(encoder), layout=how.layout, ops=how.ops)
        example = [torch.zeros(1, encoder.length, dtype=torch.int32), torch.zeros(1, encoder.length)]
    return trace_module(module, example, how.element)
