"""One rule of a key map: a pattern of foreign names, our names for it, and what else is done to the tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from snapgen_deploy.checkpoint.keymap.pattern import Pattern, Slot, SlotValue, Template, Words, read_pattern, read_template
from snapgen_deploy.checkpoint.keymap.recipe import TensorChange
from snapgen_deploy.system.documents import shown

MOST_HEADS, MOST_AXES = 65_536, 8


@dataclass(frozen=True)
class KeyRule:
    """A pattern and what becomes of the tensors that it fits."""

    pattern: Pattern
    targets: tuple[Template, ...]  # none: they are left out
    change: TensorChange = field(default_factory=TensorChange)
    optional: bool = False  # may apply to no tensor

    @property
    def text(self) -> str:
        """The pattern, as the file has it."""
        return self.pattern.text

    @property
    def joining(self) -> tuple[Slot, ...]:
        """Choices of the pattern that no target names: their tensors are joined in this order."""
        if self.change.axis is None and self.change.stack is None:
            return ()
        named = frozenset(name for target in self.targets for name in target.names)
        slots = dict.fromkeys(slot for slot in self.pattern.slots if slot.choices and slot.name not in named)
        return tuple(slots)

    def ours(self, values: Mapping[str, SlotValue]) -> list[str]:
        """All names that a match becomes.

        Raises:
            ValueError: if an index becomes negative.
        """
        return [name for target in self.targets for name in target.all(values)]


def read_rule(text: str, value: object, words: Mapping[str, Words]) -> KeyRule:
    """A rule from its key and value: our name, several, or a table with `to`.

    Raises:
        ValueError: if it is not one; the message says why.
    """
    table: Mapping[str, Any] = value if isinstance(value, dict) else {"to": value}
    unknown = [key for key in table if key not in _OPTIONS and key not in ("to", "optional")]
    if unknown or "to" not in table:
        what = f"unknown {shown(unknown[0])}" if unknown else "no 'to'"
        raise ValueError(f"{what}; expected to, optional, {', '.join(_OPTIONS)} (quote names that have dots)")
    to = [table["to"]] if isinstance(table["to"], str) else table["to"]
    if not isinstance(to, list) or not all(isinstance(name, str) for name in to):
        raise ValueError("must be our name, as a string, a list of them, or a table with 'to' (quote names that have dots)")
    optional = table.get("optional", False)
    if not isinstance(optional, bool):
        raise ValueError(f"optional: got {shown(optional)}, expected true or false")
    pattern = read_pattern(text, words)
    known = {slot.name: slot for slot in pattern.slots}
    targets = tuple(read_template(name, known) for name in to)
    settings = {
        _FIELDS.get(key, key): value for key, option in _OPTIONS.items() if key in table for value in [option(table, key)]
    }
    if isinstance(settings.get("reshape"), str):
        settings |= {"reshape": None, "as_ours": True}
    several = len(targets) > 1 or any(target.free for target in targets)
    if several and not {"axis", "stack", "share"} & set(settings):
        settings["axis"] = 0
    rule = KeyRule(pattern, targets, TensorChange(**settings), optional)
    _check(rule, several)
    return rule


def _check(rule: KeyRule, several: bool) -> None:
    change = rule.change
    ways = [name for name in ("axis", "stack") if getattr(change, name) is not None] + (["share"] if change.share else [])
    if len(ways) > 1:
        raise ValueError(f"{' and '.join(ways)}: expected one of them")
    if not rule.targets and not change.plain:
        raise ValueError("leaves tensors out, so that nothing else can be done to them")
    if several and rule.joining:
        raise ValueError(f"joins {{{rule.joining[0].name}}} and takes the result apart; expected one of the two")
    if (change.axis, change.stack) != (None, None) and not several and not rule.joining:
        raise ValueError(f"{ways[0]}: neither side has several names, such as {{x:q|k|v}}")
    if change.share and not several:
        raise ValueError("share: expected several names on our side")
    if change.heads > 1 and change.axis is None:
        raise ValueError("heads: expected several names, which are parts along an axis")


def _integer(low: int, high: int) -> Callable[[Mapping[str, Any], str], int]:
    def read(table: Mapping[str, Any], key: str) -> int:
        value = table[key]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{key}: got {shown(value)}, expected a whole number, {low} to {high}")
        return value

    return read


def _number(table: Mapping[str, Any], key: str) -> float:
    value = table[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e30 or not math.isfinite(value):
        raise ValueError(f"{key}: got {shown(value)}, expected a finite number")
    return float(value)


def _flag(table: Mapping[str, Any], key: str) -> bool:
    if table[key] is not True:
        raise ValueError(f"{key}: got {shown(table[key])}, expected true")
    return True


def _sizes(table: Mapping[str, Any], key: str) -> tuple[int, ...] | str:
    value = table[key]
    if value == "ours":
        return "ours"
    good = isinstance(value, list) and 0 < len(value) <= MOST_AXES
    if not good or not all(isinstance(n, int) and not isinstance(n, bool) and -1 <= n < 2**40 and n for n in value):
        raise ValueError(f'{key}: got {shown(value)}, expected sizes, one of which may be -1, or "ours"')
    if value.count(-1) > 1:
        raise ValueError(f"{key}: got -1 twice, expected it once")
    return tuple(value)


def _order(table: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = table[key]
    if not isinstance(value, list) or any(type(n) is not int for n in value) or sorted(value) != list(range(len(value))):
        raise ValueError(f"{key}: got {shown(value)}, expected the order of the axes, such as [1, 0]")
    return tuple(value)


_OPTIONS: Mapping[str, Callable[[Mapping[str, Any], str], Any]] = {
    "axis": _integer(0, MOST_AXES - 1), "stack": _integer(0, MOST_AXES - 1), "heads": _integer(1, MOST_HEADS), "share": _flag,
    "reshape": _sizes, "transpose": _order, "scale": _number, "add": _number,
}  # fmt: skip
_FIELDS = {"add": "shift"}
