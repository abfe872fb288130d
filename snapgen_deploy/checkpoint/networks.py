"""Loads the network at one width from an elastic checkpoint; only the bytes of that width are read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from snapgen_deploy.checkpoint.header import FLOATS
from snapgen_deploy.checkpoint.opener import Checkpoint
from snapgen_deploy.checkpoint.validation import LISTS_VALUES, non_finite, raise_problems
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.component import ComponentSpec
from snapgen_deploy.families.names import DECODER, TEXT_ENCODER, title_of
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models.decoder import TinyDecoder
from snapgen_deploy.models.on_disk import LARGE, MOST_HELD, OnDisk, large_parameters, stand_in
from snapgen_deploy.models.student import Student
from snapgen_deploy.models.text_encoder import TextEncoder
from snapgen_deploy.models.unfilled import without_storage
from snapgen_deploy.system.documents import several, shown


def stays_on_disk(spec: ComponentSpec, width: str) -> bool:
    """Whether a component is run, and converted where the target can, without its large tensors in memory."""
    return spec.by_tensor and 4 * spec.parameters(width) > MOST_HELD


def widths_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The widths that are configured and have tensors of their own in the file, narrowest first."""
    ratios, spec = checkpoint.config.student.widths, components_of(checkpoint.config).denoiser
    return tuple(w for w in sorted(ratios, key=ratios.__getitem__) if spec.holds(checkpoint.tensors, w))


def load_component(checkpoint: Checkpoint, name: str, width: str = "", *, held: bool = False) -> nn.Module:
    """A component's reference network in fp32 and eval mode, without gradients; at `width` if it depends on one.

    Of a tensor that widths share only the leading part is read. Peak memory is the network in fp32 and one tensor; a network
    that `stays_on_disk` reads its large tensors whenever it runs, unless it is `held`.

    Raises:
        BadInput: if there is no such component or width, or tensors are missing, of another shape or not finite; one message
            for all problems.
    """
    spec = _spec(checkpoint, name, width)
    if not held and stays_on_disk(spec, width):
        return load_on_disk(checkpoint, name, width).running()
    return _fill(checkpoint, spec, _built(spec, width), width, {})


def load_on_disk(checkpoint: Checkpoint, name: str, width: str = "", least: int = LARGE) -> OnDisk:
    """As `load_component`, with stand-ins for parameters of at least `least` elements, which are not read.

    Raises:
        BadInput: as `load_component`; numbers that are not finite in a large tensor are found when it is read.
    """
    spec = _spec(checkpoint, name, width)
    network = _built(spec, width)
    large = {ours: tuple(network.get_parameter(ours).shape) for ours in large_parameters(network, least)}
    _fill(checkpoint, spec, network, width, {ours: stand_in(shape) for ours, shape in large.items()})
    places = {ours: f"{spec.name}.{spec.stored(ours, width).name}" for ours in large}
    return OnDisk(network, {ours: partial(_read_finite, checkpoint, places[ours], shape) for ours, shape in large.items()})


def _read_finite(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor as it is stored.

    Raises:
        BadInput: if a number is not finite.
    """
    part = checkpoint.read(name, shape)
    raise_problems(checkpoint, non_finite(name, part), LISTS_VALUES)
    return part


def _spec(checkpoint: Checkpoint, name: str, width: str) -> ComponentSpec:
    spec = next((s for s in components_of(checkpoint.config) if s.name == name), None)
    if spec is None:
        raise BadInput(f"checkpoint {checkpoint.path}: has no {title_of(name)}")
    if spec.elastic and width not in (there := widths_of(checkpoint)):
        raise BadInput(f"checkpoint {checkpoint.path}: has no width {width!r}; it holds {several(there)}")
    return spec


def _built(spec: ComponentSpec, width: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]) if spec.has_constants else without_storage():
        return spec.build(width)


def load_student(checkpoint: Checkpoint, width: str) -> Student:
    """As `load_component`, for the component that denoises."""
    student = load_component(checkpoint, components_of(checkpoint.config).denoiser.name, width)
    assert isinstance(student, Student)
    return student


def load_decoder(checkpoint: Checkpoint) -> TinyDecoder:
    """As `load_component`, for the decoder."""
    network = load_component(checkpoint, DECODER)
    assert isinstance(network, TinyDecoder)
    return network


def load_text_encoder(checkpoint: Checkpoint) -> TextEncoder:
    """As `load_component`, for the first text encoder."""
    network = load_component(checkpoint, TEXT_ENCODER)
    assert isinstance(network, TextEncoder)
    return network


def _fill(
    checkpoint: Checkpoint, spec: ComponentSpec, network: nn.Module, width: str, instead: Mapping[str, Tensor]
) -> nn.Module:
    """Give `network` its tensors; those of `instead` are not read."""
    state: dict[str, Tensor] = {}
    problems: list[str] = []
    for ours, like in network.state_dict().items():
        stored, wanted = spec.stored(ours, width), tuple(like.shape)
        name = f"{spec.name}.{stored.name}"
        info = checkpoint.tensors.get(name)
        if info is None:
            problems.append(f"missing {name!r}, expected shape {list(wanted)}")
        elif not _holds(info.shape, wanted, exact=stored.whole):
            problems.append(f"{name!r} got shape {shown(list(info.shape))}, expected {list(wanted)}")
        elif info.dtype not in FLOATS:
            problems.append(f"{name!r} got dtype {info.dtype}, expected one of {', '.join(FLOATS)}")
        elif ours in instead:
            state[ours] = instead[ours]
        else:
            state[ours] = checkpoint.read(name, wanted).to(torch.float32)
            problems += non_finite(name, state[ours])
    raise_problems(checkpoint, problems, LISTS_VALUES)
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _holds(got: tuple[int, ...], wanted: tuple[int, ...], *, exact: bool) -> bool:
    """Whether a stored tensor is the wanted one, or (shared between widths) has it as its leading part."""
    return got == wanted if exact else len(got) == len(wanted) and all(g >= w for g, w in zip(got, wanted, strict=True))
