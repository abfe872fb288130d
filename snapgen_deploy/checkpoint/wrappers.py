"""Finds the weights in what training scripts save: `state_dict`, `model`, `ema`, `module.`, beside optimizers and steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from snapgen_deploy.checkpoint.renamed import RenamedSource
from snapgen_deploy.checkpoint.sources import Source
from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.documents import shown

# Names of dictionaries around weights: of PyTorch's DDP, FSDP and torch.compile, Lightning, diffusers' and others' scripts.
EMA = ("ema", "ema_model", "model_ema", "ema_state_dict", "params_ema", "ema_params", "shadow_params", "averaged_model")
PLAIN = ("state_dict", "model", "model_state_dict", "module", "_orig_mod", "_fsdp_wrapped_module", "params", "net", "network",
         "weights", "generator")  # fmt: skip
_COMPILED = "_orig_mod."  # torch.compile puts it before the names of any module
_DEEPEST, _MOST_LISTED = 4, 6


@dataclass(frozen=True)
class Selection:
    """What the caller says of where the weights are."""

    prefix: str | None = None  # names that begin with it, without it
    ema: bool = False  # the averaged weights


@dataclass(frozen=True)
class Unwrapped:
    """The source without what stands before its names, and a line about it ("" where nothing did)."""

    source: Source
    said: str


def unwrapped(path: Path, source: Source, selection: Selection, fits: Callable[[Sequence[str]], int]) -> Unwrapped:
    """Take the weights from what stands around them; `fits` counts how many of some names are what is looked for.

    Names stay as they are where some of them fit already. Else the prefix of known names under which most fit is taken.

    Raises:
        BadInput: if nothing begins with the prefix that was asked for, there are no averaged weights, or several prefixes fit
            equally well; the message lists what there is.
    """
    names = {name.replace(_COMPILED, ""): name for name in source.tensors}
    if len(names) < len(source.tensors):
        raise BadInput(f"checkpoint {path}: holds tensors with and without '{_COMPILED}' in their names; keep one of them")
    if selection.prefix is not None:
        return _taken(source, names, _whole_prefix(path, names, selection.prefix))
    if not selection.ema and fits(list(names)):
        return Unwrapped(source if all(new == old for new, old in names.items()) else RenamedSource(source, names), "")
    counts = {p: n for p in _prefixes(names) if (n := fits([name[len(p) :] for name in names if name.startswith(p)]))}
    if selection.ema:
        counts = {p: n for p, n in counts.items() if set(p.split(".")) & set(EMA)}
        if not counts:
            raise BadInput(f"checkpoint {path}: has no averaged weights; expected names that begin with {' or '.join(EMA[:3])}")
    best = [p for p, n in counts.items() if n == max(counts.values())]
    if len(best) > 1:
        listed = ", ".join(f"'{p}' ({counts[p]})" for p in sorted(best)[:_MOST_LISTED])
        raise BadInput(
            f"checkpoint {path}: tensors fit under several prefixes: {listed}; choose one with --prefix NAME or --ema"
        )
    if not best:
        return Unwrapped(source if all(new == old for new, old in names.items()) else RenamedSource(source, names), "")
    return _taken(source, names, best[0])


def _taken(source: Source, names: Mapping[str, str], prefix: str) -> Unwrapped:
    kept = {new[len(prefix) :]: old for new, old in names.items() if new.startswith(prefix)}
    rest = list(dict.fromkeys(new.partition(".")[0] for new in names if not new.startswith(prefix)))
    besides = (
        f"; not used: {', '.join(map(shown, rest[:_MOST_LISTED]))}{', ...' if len(rest) > _MOST_LISTED else ''}" if rest else ""
    )
    count = "1 tensor" if len(kept) == 1 else f"{len(kept)} tensors"
    return Unwrapped(RenamedSource(source, kept), f"weights: {count} under the prefix '{prefix}'{besides}")


def _whole_prefix(path: Path, names: Collection[str], prefix: str) -> str:
    """The prefix that was selection for, with its dot."""
    whole = prefix if any(name.startswith(prefix) for name in names) and prefix.endswith(".") else f"{prefix.rstrip('.')}."
    if not any(name.startswith(whole) for name in names):
        tops = list(dict.fromkeys(name.partition(".")[0] + "." for name in names if "." in name))
        listed = ", ".join(map(shown, tops[:_MOST_LISTED])) + (", ..." if len(tops) > _MOST_LISTED else "")
        raise BadInput(f"checkpoint {path}: no name begins with '{whole}'; got {listed or 'names without a prefix'}")
    return whole


def _prefixes(names: Collection[str]) -> list[str]:
    """All that known wrappers make, such as `ema_model.module.`, in order of appearance."""
    known = {*EMA, *PLAIN}
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        for depth, part in enumerate(parts[:-1][:_DEEPEST]):
            if part not in known:
                break
            found[".".join(parts[: depth + 1]) + "."] = None
    return list(found)


def common_prefix(names: Collection[str], expected: Collection[str]) -> tuple[str, int]:
    """What stands before most of the expected names, and before how many; ("", 0) if nothing does."""
    counts: dict[str, int] = {}
    starts = {name.partition(".")[0] for name in expected}
    for name in names:
        parts = name.split(".")
        for depth, part in enumerate(parts[1 : _DEEPEST + 1], 1):
            if part in starts and ".".join(parts[depth:]) in expected:
                before = ".".join(parts[:depth]) + "."
                counts[before] = counts.get(before, 0) + 1
                break
    return max(counts.items(), key=lambda pair: pair[1], default=("", 0))
