"""From an elastic checkpoint to the network at one width; only the bytes of that width are read."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from snapgen_deploy.checkpoint.opener import Checkpoint
from snapgen_deploy.checkpoint.validation import FLOATS, non_finite, raise_problems
from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.decoder import TinyDecoder
from snapgen_deploy.models.dit import DiT, elastic_name, is_per_width
from snapgen_deploy.models.text_encoder import TextEncoder

Network = TypeVar("Network", bound=nn.Module)


def widths_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The widths that are configured and have tensors of their own in the file, narrowest first."""
    ratios = checkpoint.config.student.widths
    suffixes = {name.rpartition("@")[2] for name in checkpoint.tensors if name.startswith("student.") and "@" in name}
    return tuple(w for w in sorted(ratios, key=ratios.__getitem__) if w in suffixes)


def load_student(checkpoint: Checkpoint, width: str) -> DiT:
    """The student at `width`: fp32, eval, without gradients.

    Of a shared tensor the leading part is read, of the tensors that exist once per width only this width's. Peak memory is
    the sub-network in fp32 and one tensor. Raises BadInput for a width that is not there, and one for all bad tensors.
    """
    there = widths_of(checkpoint)
    if width not in there:
        raise BadInput(f"checkpoint {checkpoint.path}: has no width {width!r}; it holds {', '.join(there) or 'none'}")
    with torch.device("meta"):
        student = DiT(checkpoint.config.student, width)
    return _fill(checkpoint, student, {n: f"student.{elastic_name(n, width)}" for n in student.state_dict()})


def load_decoder(checkpoint: Checkpoint) -> TinyDecoder:
    """The decoder: fp32, eval, without gradients. Raises BadInput where the checkpoint has none or its tensors are bad."""
    config = checkpoint.config.decoder
    if config is None:
        raise BadInput(f"checkpoint {checkpoint.path}: has no decoder")
    with torch.random.fork_rng(devices=[]):  # built with storage, since its latent statistics are no part of its state
        decoder = TinyDecoder(config)
    return _fill(checkpoint, decoder, {n: f"decoder.{n}" for n in decoder.state_dict()})


def load_text_encoder(checkpoint: Checkpoint) -> TextEncoder:
    """The text encoder: fp32, eval, without gradients. Raises BadInput where there is none or its tensors are bad."""
    config = checkpoint.config.text_encoder
    if config is None:
        raise BadInput(f"checkpoint {checkpoint.path}: has no text encoder")
    with torch.device("meta"):
        encoder = TextEncoder(config)
    return _fill(checkpoint, encoder, {n: f"text_encoder.{n}" for n in encoder.state_dict()})


def _fill(checkpoint: Checkpoint, network: Network, names: dict[str, str]) -> Network:
    """Give `network` the tensors that `names` maps its own names to."""
    state: dict[str, Tensor] = {}
    problems: list[str] = []
    for ours, like in network.state_dict().items():
        name, wanted = names[ours], tuple(like.shape)
        info = checkpoint.tensors.get(name)
        if info is None:
            problems.append(f"missing {name!r}, expected shape {list(wanted)}")
        elif not _holds(info.shape, wanted, exact=not name.startswith("student.") or is_per_width(ours)):
            problems.append(f"{name!r} got shape {list(info.shape)}, expected {list(wanted)}")
        elif info.dtype not in FLOATS:
            problems.append(f"{name!r} got dtype {info.dtype}, expected one of {', '.join(FLOATS)}")
        else:
            part = checkpoint.read(name, wanted)
            problems += non_finite(name, part)
            state[ours] = part.to(torch.float32)
    raise_problems(checkpoint, problems)
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _holds(got: tuple[int, ...], wanted: tuple[int, ...], *, exact: bool) -> bool:
    """Whether a stored tensor is the wanted one, or (shared between widths) has it as its leading part."""
    return got == wanted if exact else len(got) == len(wanted) and all(g >= w for g, w in zip(got, wanted, strict=True))
