"""Loads the network at one width from an elastic checkpoint; only the bytes of that width are read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snapgen_deploy.checkpoint.header import FLOATS
from snapgen_deploy.checkpoint.opener import Checkpoint
from snapgen_deploy.checkpoint.validation import non_finite, raise_problems
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.component import ComponentSpec
from snapgen_deploy.families.names import DECODER, TEXT_ENCODER, title_of
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models.decoder import TinyDecoder
from snapgen_deploy.models.student import Student
from snapgen_deploy.models.text_encoder import TextEncoder
from snapgen_deploy.models.unfilled import without_storage


def widths_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The widths that are configured and have tensors of their own in the file, narrowest first."""
    ratios, spec = checkpoint.config.student.widths, components_of(checkpoint.config).denoiser
    return tuple(w for w in sorted(ratios, key=ratios.__getitem__) if spec.holds(checkpoint.tensors, w))


def load_component(checkpoint: Checkpoint, name: str, width: str = "") -> nn.Module:
    """A component's reference network in fp32 and eval mode, without gradients; at `width` if it depends on one.

    Of a tensor that widths share only the leading part is read. Peak memory is the network in fp32 and one tensor.

    Raises:
        BadInput: if there is no such component or width, or tensors are missing, of another shape or not finite; one message
            for all problems.
    """
    spec = next((s for s in components_of(checkpoint.config) if s.name == name), None)
    if spec is None:
        raise BadInput(f"checkpoint {checkpoint.path}: has no {title_of(name)}")
    if spec.elastic and width not in (there := widths_of(checkpoint)):
        raise BadInput(f"checkpoint {checkpoint.path}: has no width {width!r}; it holds {', '.join(there) or 'none'}")
    with torch.random.fork_rng(devices=[]) if spec.has_constants else without_storage():
        network = spec.build(width)
    return _fill(checkpoint, spec, network, width)


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


def _fill(checkpoint: Checkpoint, spec: ComponentSpec, network: nn.Module, width: str) -> nn.Module:
    """Give `network` its tensors."""
    state: dict[str, Tensor] = {}
    problems: list[str] = []
    for ours, like in network.state_dict().items():
        stored, wanted = spec.stored(ours, width), tuple(like.shape)
        name = f"{spec.name}.{stored.name}"
        info = checkpoint.tensors.get(name)
        if info is None:
            problems.append(f"missing {name!r}, expected shape {list(wanted)}")
        elif not _holds(info.shape, wanted, exact=stored.whole):
            problems.append(f"{name!r} got shape {list(info.shape)}, expected {list(wanted)}")
        elif info.dtype not in FLOATS:
            problems.append(f"{name!r} got dtype {info.dtype}, expected one of {', '.join(FLOATS)}")
        else:
            state[ours] = checkpoint.read(name, wanted).to(torch.float32)
            problems += non_finite(name, state[ours])
    raise_problems(checkpoint, problems)
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _holds(got: tuple[int, ...], wanted: tuple[int, ...], *, exact: bool) -> bool:
    """Whether a stored tensor is the wanted one, or (shared between widths) has it as its leading part."""
    return got == wanted if exact else len(got) == len(wanted) and all(g >= w for g, w in zip(got, wanted, strict=True))
