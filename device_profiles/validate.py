"""From a parsed TOML table to a Profile; every problem is collected with its key path, what was got and what is expected."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from snapgen_deploy.device_profiles.schema import (
    BUDGET_STATUSES,
    BYTES_IN,
    FIGURES,
    GUARDS,
    KINDS,
    LAYOUTS,
    STATUSES,
    Figure,
    LatencyBasis,
    Offer,
    Profile,
    ProfileTarget,
)
from snapgen_deploy.export.precisions import LIMIT_NAMES
from snapgen_deploy.export.registry import find_spec, spec_of, target_keys

LEAST, MOST = 1e-9, 1e18  # of any figure, in any of the units
ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")  # a part of the bundle's folder name


class Reader:
    """Reads values out of one table and notes what is wrong instead of stopping at the first problem."""

    def __init__(self, table: Mapping[str, Any], path: str, problems: list[str]) -> None:
        self.table, self.path, self.problems = table, path, problems
        self.seen: set[str] = set()

    def at(self, key: str) -> str:
        """Full path of a key."""
        return f"{self.path}.{key}" if self.path else key

    def wrong(self, key: str, got: object, expected: str) -> None:
        """Note a problem."""
        self.problems.append(f"{self.at(key)}: got {got}, expected {expected}")

    def text(self, key: str, choices: Sequence[str] = ()) -> str:
        """A non-empty string, one of `choices` where given."""
        self.seen.add(key)
        expected = f"one of {', '.join(choices)}" if choices else "a non-empty string"
        value = self.table.get(key)
        if key not in self.table:
            self.wrong(key, "nothing", expected)
        elif not isinstance(value, str) or not value.strip() or (choices and value not in choices):
            self.wrong(key, repr(value), expected)
        else:
            return value
        return ""

    def number(self, key: str) -> float:
        """A positive number of a size that a figure can have."""
        self.seen.add(key)
        value = self.table.get(key)
        if key not in self.table:
            self.wrong(key, "nothing", "a positive number")
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or not LEAST <= value <= MOST:
            self.wrong(key, repr(value)[:40], f"a positive number, {LEAST:g} to {MOST:g}")
        else:
            return float(value)
        return math.nan

    def texts(self, key: str, choices: Sequence[str] = ()) -> tuple[str, ...]:
        """A list of strings, out of `choices` where given; empty where the key is absent."""
        self.seen.add(key)
        value = self.table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() and v in (choices or [v]) for v in value):
            self.wrong(key, repr(value), f"a list out of {', '.join(choices)}" if choices else "a list of strings")
            return ()
        return tuple(value)

    def child(self, key: str, *, needed: bool) -> Reader | None:
        """The reader of a sub-table, or None where it is absent or no table."""
        self.seen.add(key)
        value = self.table.get(key)
        if isinstance(value, dict):
            return Reader(value, self.at(key), self.problems)
        if key in self.table:
            self.wrong(key, repr(value), "a table")
        elif needed:
            self.wrong(key, "nothing", "a table")
        return None

    def done(self, known: Sequence[str] = ()) -> None:
        """Note every key that nothing has asked for."""
        names = sorted({*self.seen, *known})
        for key in sorted(set(self.table) - self.seen):
            near = difflib.get_close_matches(key, names, 1)
            self.wrong(key, "an unknown key", f"'{near[0]}'?" if near else f"only {', '.join(names)}")


def read_profile(table: Mapping[str, Any]) -> tuple[Profile, list[str]]:
    """The profile in a parsed file, and what is wrong with it; the profile is to be used only if the list is empty."""
    problems: list[str] = []
    top = Reader(table, "", problems)
    os = top.child("os", needed=True) or Reader({}, "os", [])
    budget = top.child("budget", needed=False) or Reader({}, "budget", problems)
    latency = top.child("latency", needed=False)
    profile = Profile(
        id=top.text("id"),
        name=top.text("name"),
        kind=top.text("kind", KINDS),
        soc=top.text("soc"),
        os=os.text("name"),
        os_minimum=os.text("minimum"),
        source=top.text("source"),
        figures=_figures(top),
        targets=_targets(top),
        offers=_offers(top),
        memory_budget=_figure(budget, "memory", tuple(BYTES_IN), BUDGET_STATUSES, needed=False),
        latency_budget=_figure(budget, "latency", ("ms",), BUDGET_STATUSES, needed=False),
        latency=_latency(latency) if latency is not None else None,
        guards=top.texts("guards", tuple(GUARDS)),
        notes=top.texts("notes"),
    )
    for reader in (os, budget, top):
        reader.done()
    if profile.id and (profile.id == "host" or not ID.fullmatch(profile.id)):
        top.wrong("id", repr(profile.id[:80]), "up to 64 lower-case letters, digits, - and _, other than host")
    for target in profile.targets:
        for name in spec_of(target.key).from_figures:
            if name not in profile.figures:
                top.wrong(f"figures.{name}", "nothing", f"a figure, which {target.key} needs")
    if profile.latency is not None and profile.latency.target not in {t.key for t in profile.targets}:
        top.wrong("latency.target", repr(profile.latency.target), "one of the profile's targets")
    return profile, problems


def _figure(
    parent: Reader, key: str, units: Sequence[str], statuses: Sequence[str] = STATUSES, *, needed: bool = True
) -> Figure | None:
    reader = parent.child(key, needed=needed)
    if reader is None:
        return None
    figure = Figure(reader.number("value"), reader.text("unit", units), reader.text("status", statuses), reader.text("source"))
    reader.done()
    return figure


def _figures(top: Reader) -> Mapping[str, Figure]:
    reader = top.child("figures", needed=True)
    if reader is None:
        return {}
    found = {name: _figure(reader, name, units, needed=False) for name, units in FIGURES.items()}
    reader.done()
    return MappingProxyType({name: figure for name, figure in found.items() if figure is not None})


def _targets(top: Reader) -> tuple[ProfileTarget, ...]:
    top.seen.add("targets")
    rows = top.table.get("targets")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        top.wrong("targets", "nothing" if rows is None else repr(rows), "one or more [[targets]] tables")
        return ()
    found = [t for i, row in enumerate(rows) if (t := _target(Reader(row, f"targets[{i}]", top.problems))) is not None]
    keys = [t.key for t in found]
    for key in sorted({k for k in keys if keys.count(k) > 1}):
        top.wrong("targets", f"{key} {keys.count(key)} times", "each target once")
    return tuple(found)


def _offers(top: Reader) -> tuple[Offer, ...]:
    """Tables like those of `targets`, each with the source that says that the device runs it."""
    top.seen.add("offers")
    rows = top.table.get("offers", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        top.wrong("offers", repr(rows), "[[offers]] tables, or none")
        return ()
    found = []
    for i, row in enumerate(rows):
        reader = Reader(row, f"offers[{i}]", top.problems)
        source = reader.text("source")
        if (target := _target(reader)) is not None:
            found.append(Offer(target, source))
    return tuple(found)


def _target(reader: Reader) -> ProfileTarget | None:
    key = reader.text("target")
    spec = find_spec(key)
    if key and spec is None:
        reader.wrong("target", repr(key), f"one of {', '.join(target_keys())}")
    precision = reader.text("precision", spec.precisions if spec else ())
    layout = reader.text("layout", LAYOUTS)
    options, limits = _options(reader), _limits(reader)
    reader.done()
    if spec is None:
        return None
    return ProfileTarget(spec.name, spec.variant, precision, layout, options, limits)


def _options(reader: Reader) -> tuple[tuple[str, str], ...]:
    table = reader.child("options", needed=False)
    if table is None:
        return ()
    return tuple((name, table.text(name)) for name in sorted(table.table))


def _limits(reader: Reader) -> tuple[tuple[str, float], ...]:
    table = reader.child("limits", needed=False)
    if table is None:
        return ()
    found = tuple((name, table.number(name)) for name in LIMIT_NAMES if name in table.table)
    table.done(LIMIT_NAMES)
    return found


def _latency(reader: Reader) -> LatencyBasis | None:
    resolution = reader.table.get("resolution")
    reader.seen.add("resolution")
    sound = isinstance(resolution, list) and len(resolution) == 2 and all(type(n) is int and n > 0 for n in resolution)
    if not sound:
        reader.wrong("resolution", repr(resolution), "[height, width] in pixels")
    preset, target = reader.text("preset"), reader.text("target")
    decoder = _figure(reader, "decoder", ("ms",))
    steps = reader.child("step", needed=True)
    found = {width: _figure(steps, width, ("ms",)) for width in steps.table} if steps is not None else {}
    reader.done()
    if not sound or decoder is None or resolution is None:
        return None
    times = MappingProxyType({width: figure for width, figure in found.items() if figure is not None})
    return LatencyBasis(preset, (resolution[0], resolution[1]), target, times, decoder)
