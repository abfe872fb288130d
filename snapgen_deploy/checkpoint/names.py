"""Their names beside ours, and drafts of key maps, for a checkpoint that need not fit yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from snapgen_deploy.checkpoint.header import TensorInfo
from snapgen_deploy.checkpoint.keymap import KeyMap, key_map_of
from snapgen_deploy.checkpoint.keymap.compare import SideBySide, side_by_side
from snapgen_deploy.checkpoint.keymap.suggest import suggest
from snapgen_deploy.checkpoint.mapped import made_of
from snapgen_deploy.checkpoint.opener import Foreign, open_foreign
from snapgen_deploy.checkpoint.place import CheckpointPlace
from snapgen_deploy.system.documents import parse_toml, shown

MOST_LEFT = 20  # tensors of either side that a draft lists as left over


@dataclass(frozen=True)
class Names:
    """All names of a checkpoint's own file and of its configuration."""

    theirs: Mapping[str, TensorInfo]
    comparison: SideBySide
    notes: tuple[str, ...]


def compare_names(place: CheckpointPlace) -> Names:
    """What a checkpoint's key map makes of its names; without one, names that are ours.

    Raises:
        BadInput: if the files or the configuration cannot be read.
    """
    foreign = open_foreign(place.file, place.reading)
    return Names(foreign.source.tensors, _compared(foreign, foreign.keys), foreign.notes)


def _compared(foreign: Foreign, keys: KeyMap | None) -> SideBySide:
    tensors = foreign.source.tensors
    found = (keys or key_map_of({}, None)).match(tensors, foreign.expected)
    made: dict[str, tuple[int, ...] | None] = {}
    for name, recipe in found.recipes.items():
        try:
            made[name] = made_of(recipe, foreign.source).shape
        except ValueError:
            made[name] = None
    return side_by_side(found, {name: info.shape for name, info in tensors.items()}, foreign.expected, made)


def draft_key_map(place: CheckpointPlace) -> tuple[str, SideBySide, tuple[str, ...]]:
    """A drafted key map as TOML, what it makes of the names, and notes about the file.

    Tensors that stay without a partner are listed at its end, as comments.

    Raises:
        BadInput: if the files or the configuration cannot be read.
    """
    foreign = open_foreign(place.file, place.reading)
    text = suggest({name: info.shape for name, info in foreign.source.tensors.items()}, foreign.expected).text
    compared = _compared(foreign, key_map_of(parse_toml(text), None))
    left = [f"nothing found for {shown(m.ours)}, shape {list(m.expected)}" for m in compared.missing]
    extra = [f"not used: {shown(n)}, shape {list(foreign.source.tensors[n].shape)}" for n in compared.unused]
    for lines in (left, extra):
        more = [f"and {len(lines) - MOST_LEFT} more"] if len(lines) > MOST_LEFT else []
        text += "".join(f"# {line}\n" for line in [*lines[:MOST_LEFT], *more])
    return text, compared, foreign.notes
