"""Deterministic guards: compares what two exports consist of. Nothing is timed, so there is no noise: any change is reported.

The usual causes of slower inference are visible here: an operator left its delegate, a fusion was lost, a dtype became wider, a
copy was added.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from snapgen_deploy.device_profiles.schema import GUARDS

PER_COMPONENT = ("bytes", "ops", "macs", "placement", "portable_ops", "lint", "weight_dtypes")


@dataclass(frozen=True)
class Guard:
    """One property of one component, or of a whole target, in both exports."""

    name: str
    component: str  # "target", "target role" or "target role size"
    base: Any  # plain data as in the manifest; None: absent
    candidate: Any
    verdict: str  # same, changed (reported) or failed (the device profile lists the guard as failing)
    detail: str = ""


def guards_of(base: Mapping[str, Any], candidate: Mapping[str, Any], fail: Collection[str] = ()) -> tuple[Guard, ...]:
    """Compare two manifests. A property that only one side has is a change; a changed guard in `fail` fails."""
    lists = [(m.get("device") or {}).get("guards") for m in (base, candidate)]
    pairs = [("device", "guards", lists[0], lists[1]), *_pairs(base["targets"], candidate["targets"])]
    found = []
    for where, name, before, after in pairs:
        same = before == after
        verdict = "same" if same else "failed" if name in fail else "changed"
        found.append(Guard(name, where, before, after, verdict, "" if same else _difference(before, after)))
    return tuple(found)


def guard_verdict(guards: Sequence[Guard]) -> str:
    """The worst verdict: `failed`, `changed` or `same`."""
    found = {g.verdict for g in guards}
    return next((v for v in ("failed", "changed") if v in found), "same")


def _pairs(base: Mapping[str, Any], candidate: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    """(component, guard, base value, candidate value) for everything that either side has."""
    for key in sorted({*base, *candidate}):
        ours, theirs = base.get(key, {}), candidate.get(key, {})
        for name in GUARDS:
            if name not in PER_COMPONENT:
                yield key, name, ours.get(name), theirs.get(name)
        parts = _parts(ours), _parts(theirs)
        for where in sorted({*parts[0], *parts[1]}):
            before, after = (p.get(where, {}) for p in parts)
            for name in PER_COMPONENT:
                yield f"{key} {where}", name, before.get(name), after.get(name)


def _parts(target: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Components by role, and by role and picture size if a bundle has several: each size is a graph of its own."""
    found: dict[str, Mapping[str, Any]] = {}
    for role, component in target.get("components", {}).items():
        found[role] = component
        found |= {f"{role} {size}": one for size, one in component.get("sizes", {}).items()}
    return found


def _text(value: Any) -> str:
    return "absent" if value is None else json.dumps(value, sort_keys=True)


def _difference(before: Any, after: Any) -> str:
    """What changed, in short: `matmul 8 -> 9` for tables, percent for numbers."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        names = sorted(n for n in {*before, *after} if before.get(n) != after.get(n))
        return ", ".join(f"{n} {before.get(n, 'absent')} -> {after.get(n, 'absent')}" for n in names)
    if isinstance(before, int | float) and isinstance(after, int | float) and before:
        return f"{before} -> {after} ({100 * (after / before - 1):+.2f} %)"
    return f"{_text(before)} -> {_text(after)}"
