"""The operations of a picture: text encoder, one step of the student, decoder, as a target would export them for a width.

The networks are built on the meta device from the configuration alone, without a checkpoint or memory for weights.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import nn

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.registry import spec_of
from snapgen_deploy.families import component
from snapgen_deploy.families.component import ComponentSpec
from snapgen_deploy.families.registry import components_of, family_of
from snapgen_deploy.latency.estimate.cost import OpCost, trace_module
from snapgen_deploy.latency.estimate.cost_ops import UnknownOperation
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.models.serialise import config_to_json
from snapgen_deploy.models.unfilled import without_storage
from snapgen_deploy.plan.sizes import latent_of
from snapgen_deploy.plan.widths import WEIGHT_BYTES
from snapgen_deploy.sparse import Layout, OpForm, UpsampleForm
from snapgen_deploy.system.documents import several
from snapgen_deploy.system.quiet import first_line

Ops = tuple[OpCost, ...]


@dataclass(frozen=True)
class Spelled:
    """How networks are written for a target; `job.components.build_component` does the same for the real ones."""

    layout: Layout
    element: int  # bytes per number
    ops: OpForm
    upsample: UpsampleForm | None


class NoCosts(LookupError):
    """The operations of a network that is not known here cannot be told; the message says why."""


Costs = Mapping[str, Ops]  # operations by component; of the student, those of one step


@dataclass(frozen=True)
class Drawn:
    """What ports depend on, besides the configuration."""

    width: str
    resolution: tuple[int, int]
    latent: tuple[int, int, int]
    batch: int = 1


def spelling_of(target: str) -> Spelled:
    """How networks are written for a target, `name` or `name:variant`, at its default precision.

    Activations of w8a16 have 16 bits, like those of fp16.

    Raises:
        BadInput: if the target is not known.
    """
    spec = spec_of(target)
    precision, writing = spec.precisions[0], spec.writing
    return Spelled(spec.layout, int(WEIGHT_BYTES[precision]), writing.ops_at(precision), writing.upsample)


def picture_costs(config: ModelConfig, width: str, resolution: tuple[int, int], target: str, batch: int = 1) -> Costs:
    """Trace all components at a width and picture size, as `target` exports them, for calls that draw `batch` pictures.

    Results are cached in the process.

    Raises:
        BadInput: if the model has no such width or picture size, or the target is not known.
        NoCosts: if a network has an operation without a rule, or cannot be built without numbers.
    """
    if width not in config.student.widths:
        raise BadInput(f"no width '{width}': expected one of {several(list(config.student.widths))}")
    latent, how, found = latent_of(config, resolution), spelling_of(target), dict[str, Ops]()
    drawn, text = Drawn(width, resolution, latent, batch), config_to_json(config)
    for spec in components_of(config):
        of = drawn if spec.elastic else replace(drawn, width="")
        try:
            found[spec.name] = _traced(_Traced(text, how, spec.name, of, config))
        except Exception as error:  # whatever a user's module, or a library, does without numbers: no export ends by it
            if not spec.needs_vectors and not isinstance(error, (UnknownOperation, RuntimeError)):
                raise
            raise NoCosts(f"nothing is known of the {spec.title}'s speed: {first_line(error)}") from error
    return MappingProxyType(found)


@dataclass(frozen=True)
class _Traced:
    """What the operations of a component depend on; configurations are compared by their text."""

    text: str
    how: Spelled
    name: str
    drawn: Drawn
    config: ModelConfig = field(compare=False)


@functools.lru_cache(maxsize=128)
def _traced(of: _Traced) -> Ops:
    spec, form = components_of(of.config)[of.name], family_of(of.config).form(of.config, of.drawn.latent[1:])
    with without_storage():
        network = spec.build(of.drawn.width)
    return component_costs(of.config, spec, network, of.drawn, of.how, form)


def component_costs(config: ModelConfig, spec: ComponentSpec, network: nn.Module, drawn: Drawn, how: Spelled, form: str) -> Ops:
    """The operations of one call of a component, given as its reference network without storage, as a target exports it.

    If a student's graph folds the query heads of a group into one matrix of scores, `tile` is still that of one head: a runtime
    need not hold a whole group at once.
    """
    latent = (drawn.latent[1], drawn.latent[2])
    rows = spec.rows_in(drawn.batch)
    with without_storage(), torch.no_grad():
        module = spec.rewrite(network, latent, component.Spelling(how.layout, how.ops, how.upsample, form, batch=rows))
        example = [torch.zeros(p.shape, dtype=getattr(torch, p.dtype)) for p in spec.called(drawn).inputs]
    found = trace_module(module, example, how.element)
    if spec.part != "denoise":
        return found
    folding = family_of(config).folding(config, latent, how.layout, form)
    alone = {elements * how.element for elements in folding.alone}
    return tuple(replace(o, tile=max(1, o.tile // folding.heads)) if o.tile and o.tile not in alone else o for o in found)
