"""Checks that a checkpoint holds exactly the tensors of its configuration, with finite values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from snapgen_deploy.checkpoint.expected import expected_shapes
from snapgen_deploy.checkpoint.float8 import FLOAT8, refuse_without_scales
from snapgen_deploy.checkpoint.header import FLOATS
from snapgen_deploy.checkpoint.keymap.compare import near_misses
from snapgen_deploy.checkpoint.opener import Checkpoint
from snapgen_deploy.checkpoint.wrappers import common_prefix
from snapgen_deploy.errors import WrongFile
from snapgen_deploy.families.names import DECODER, TEXT_ENCODER
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models.config import ModelConfig
from snapgen_deploy.system.documents import LONGEST_NAME, cut, in_one_line, shown

LISTS, LISTS_VALUES = "inspect", "inspect --check"  # commands that list what is wrong with a checkpoint
MOST_GUESSED = 5  # missing tensors whose near misses are looked for
_AT_ONCE = 1 << 24  # elements that are looked at together


def structural_problems(checkpoint: Checkpoint) -> list[str]:
    """Missing, extra and mis-shaped tensors and wrong dtypes, one line each, from headers alone."""
    return _structural(checkpoint, expected_shapes(checkpoint.config))


def _structural(checkpoint: Checkpoint, expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    if not expected.keys() & checkpoint.tensors.keys():
        prefix, count = common_prefix(checkpoint.tensors, expected)
        if count:
            many = "1 tensor carries" if count == 1 else f"{count} tensors carry"
            return [f"{many} the prefix {shown(prefix)} before our names; add --prefix {prefix[:60]}"]
    refuse_without_scales(checkpoint.path, [n for n, i in checkpoint.tensors.items() if i.dtype in FLOAT8 and n in expected])
    extra = {n: i.shape for n, i in checkpoint.tensors.items() if n not in expected}
    missing = [n for n in expected if n not in checkpoint.tensors]
    found = [f"missing {n!r}, expected shape {list(expected[n])}" for n in missing]
    for place, name in enumerate(missing[:MOST_GUESSED]):
        if near := near_misses(name, expected[name], list(extra), extra):
            found[place] += f", perhaps {cut(repr(near[0]), LONGEST_NAME)}"
    for name, info in checkpoint.tensors.items():
        said = cut(repr(name), LONGEST_NAME)
        if name not in expected:
            found.append(f"extra {said}, got shape {shown(list(info.shape))}{_component_hint(checkpoint.config, name)}")
            continue
        if info.shape != expected[name]:
            found.append(f"{said} got shape {shown(list(info.shape))}, expected {list(expected[name])}")
        if info.dtype not in FLOATS:
            found.append(f"{said} got dtype {info.dtype}, expected one of {', '.join(FLOATS)}")
    return found


def _not_finite(checkpoint: Checkpoint, expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Of the tensors of the right shape and dtype, which alone are read, one at a time."""
    found = []
    for name, info in checkpoint.tensors.items():
        if info.dtype in FLOATS and info.shape == expected.get(name):
            found += non_finite(name, checkpoint.read(name).to(torch.float32))
    return found


def non_finite(name: str, tensor: Tensor) -> list[str]:
    """What is not finite in a tensor: at most one line."""
    rows = max(1, _AT_ONCE * len(tensor) // max(1, tensor.numel())) if tensor.dim() else 0
    if all(bool(torch.isfinite(part).all()) for part in (tensor.split(rows) if rows else (tensor,))):
        return []
    nans, infinite = int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum())
    return [f"{name!r} has {nans} NaN and {infinite} infinite of {tensor.numel()} values"]


def validate(checkpoint: Checkpoint, *, values: bool = True) -> None:
    """Check the whole checkpoint; without `values` only headers, and no tensor is read.

    Raises:
        WrongFile: if there are problems; one message for all of them.
    """
    expected = expected_shapes(checkpoint.config)
    found = _structural(checkpoint, expected)
    raise_problems(checkpoint, found + (_not_finite(checkpoint, expected) if values else []), LISTS_VALUES if values else LISTS)


def validate_values(checkpoint: Checkpoint) -> None:
    """Check the values of a checkpoint whose headers were validated: all of it is read.

    Raises:
        WrongFile: if values are not finite; one message for all of them.
    """
    raise_problems(checkpoint, _not_finite(checkpoint, expected_shapes(checkpoint.config)), LISTS_VALUES)


def raise_problems(checkpoint: Checkpoint, problems: list[str], lists: str) -> None:
    """Report problems, if there are any; `lists` is the command that shows all of them.

    Raises:
        WrongFile: if `problems` is not empty; one message for all of them.
    """
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        rest = f"; `{lists}` lists all, `inspect --names` shows both sides"
        head = f"checkpoint {checkpoint.path.name}"  # only the rest of the path comes on top of the longest line
        line = in_one_line(f"{head}: {count}", problems, rest=rest)
        raise WrongFile(f"checkpoint {checkpoint.path}{line.removeprefix(head)}", problems)


def _component_hint(config: ModelConfig, name: str) -> str:
    component = name.split(".", 1)[0]
    absent = component in (DECODER, TEXT_ENCODER) and component not in components_of(config).names
    return f" (the configuration says that there is no {component})" if absent else ""
