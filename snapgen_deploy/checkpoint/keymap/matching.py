"""What a key map makes of the names of a foreign checkpoint."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from snapgen_deploy.checkpoint.keymap.pattern import SlotValue
from snapgen_deploy.checkpoint.keymap.recipe import TensorRecipe
from snapgen_deploy.checkpoint.keymap.rule import KeyRule
from snapgen_deploy.errors import nearest
from snapgen_deploy.families.component import Shape
from snapgen_deploy.system.documents import LONGEST_NAME, cut, refuse, shown

MOST_COMPARED = 3  # rules without a tensor whose near misses are looked for, which takes a comparison with every name


@dataclass(frozen=True)
class Matching:
    """What a key map makes of names: recipes by our name, which foreign names no rule names or are left out, and problems."""

    recipes: Mapping[str, TensorRecipe]
    unnamed: tuple[str, ...]  # they keep their names
    dropped: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class KeyMap:
    """Renaming rules, checked."""

    path: Path
    rules: tuple[KeyRule, ...]
    prefixes: dict[str, str]
    patterns: tuple[tuple[re.Pattern[str], str], ...]
    drops: tuple[re.Pattern[str], ...]

    def recipes(self, foreign: Iterable[str], expected: Mapping[str, Shape]) -> Mapping[str, TensorRecipe]:
        """Our name -> how it is made of foreign tensors; `expected` has the shapes of ours.

        Raises:
            BadInput: if two names become the same, a rule applies to no tensor, or a tensor that it needs is not there; one
                message for all problems.
        """
        found = self.match(foreign, expected)
        refuse(f"key map {self.path}", found.problems)
        return found.recipes

    def match(self, foreign: Iterable[str], expected: Mapping[str, Shape]) -> Matching:
        """As `recipes`, with problems as they are."""
        return _Matcher(self, tuple(foreign), expected).run()

    @cached_property
    def _exact(self) -> Mapping[str, tuple[KeyRule, Mapping[str, SlotValue]]]:
        return {"".join(map(str, r.pattern.parts)): (r, {}) for r in self.rules if not r.pattern.slots}

    @cached_property
    def _general(self) -> tuple[KeyRule, ...]:
        return tuple(rule for rule in self.rules if rule.pattern.slots)

    def rule_for(self, name: str) -> tuple[KeyRule, Mapping[str, SlotValue]] | None:
        """The first rule whose pattern fits a foreign name, with what stands in its slots."""
        if name in self._exact:
            return self._exact[name]
        for rule in self._general:
            values = rule.pattern.match(name)
            if values is not None:
                return rule, values
        return None

    def names_it(self, name: str) -> bool:
        """Whether any rule applies to a foreign name."""
        dropped = any(pattern.fullmatch(name) for pattern in self.drops)
        return dropped or self.rule_for(name) is not None or bool(self.renamed(name)[0])

    def renamed(self, name: str) -> tuple[str, str]:
        """The prefix or regular expression that applies ("" for none), and the new name."""
        prefix = max((p for p in self.prefixes if name.startswith(p)), key=len, default=None)
        if prefix is not None:
            return f"prefix {prefix!r}", self.prefixes[prefix] + name[len(prefix) :]
        for pattern, template in self.patterns:
            match = pattern.fullmatch(name)
            if match:
                return f"regex {pattern.pattern!r}", match.expand(template)
        return "", name


class _Matcher:
    """One run of a key map over names."""

    def __init__(self, keys: KeyMap, foreign: tuple[str, ...], expected: Mapping[str, Shape]) -> None:
        self._keys, self._foreign, self._expected = keys, foreign, expected
        self._only: dict[str, list[str]] = {}  # names without their width
        for name in expected:
            plain, at, _ = name.partition("@")
            if at:
                self._only.setdefault(plain, []).append(name)
        self._unused = {f"name {r.text!r}": r.text for r in keys.rules if not r.optional}  # and what to look for instead
        self._unused |= {f"prefix {p!r}": "" for p in keys.prefixes} | {f"drop {p.pattern!r}": "" for p in keys.drops}
        self._unused |= {f"regex {p.pattern!r}": "" for p, _ in keys.patterns}
        self._recipes: dict[str, TensorRecipe] = {}
        self._joined: dict[
            tuple[str, tuple[tuple[str, SlotValue], ...]], dict[tuple[SlotValue, ...], str]
        ] = {}  # by rule and values
        self._by_text = {rule.text: rule for rule in keys.rules}
        self._unnamed: list[str] = []
        self._dropped: list[str] = []
        self._problems: list[str] = []

    def run(self) -> Matching:
        for name in self._foreign:
            self._place(name)
        for (text, values), pieces in self._joined.items():
            self._join(self._by_text[text], dict(values), pieces)
        for count, (text, name) in enumerate(sorted(self._unused.items())):
            hint = nearest(name, self._foreign) if name and count < MOST_COMPARED else ""
            self._problems.append(f"{cut(text, LONGEST_NAME)} applies to no tensor{hint}")
        return Matching(self._recipes, tuple(self._unnamed), tuple(self._dropped), tuple(self._problems))

    def _place(self, name: str) -> None:
        for pattern in self._keys.drops:
            if pattern.fullmatch(name):
                self._unused.pop(f"drop {pattern.pattern!r}", None)
                self._dropped.append(name)
                return
        found = self._keys.rule_for(name)
        if found is None:
            text, new = self._keys.renamed(name)
            self._unused.pop(text, None)
            if not text:
                self._unnamed.append(name)
            self._add(new, TensorRecipe((name,), text))
            return
        rule, values = found
        self._unused.pop(f"name {rule.text!r}", None)
        if joining := rule.joining:
            rest = tuple((key, value) for key, value in values.items() if key not in {slot.name for slot in joining})
            place = self._joined.setdefault((rule.text, rest), {})
            place[tuple(values[slot.name] for slot in joining)] = name
        elif not rule.targets:
            self._dropped.append(name)
        else:
            self._spread(rule, values, name)

    def _spread(self, rule: KeyRule, values: Mapping[str, SlotValue], name: str) -> None:
        """One foreign tensor becomes one of ours, or several."""
        try:
            ours = [self._full(new) for new in rule.ours(values)]
        except ValueError as error:
            self._problems.append(f"{shown(name)}: {error}")
            return
        if rule.change.plain:
            self._add(ours[0], TensorRecipe((name,), rule.text))
            return
        parts = self._shapes(ours, name)
        for part, new in enumerate(ours if parts else ()):
            self._add(new, TensorRecipe((name,), rule.text, rule.change, part, parts))

    def _join(self, rule: KeyRule, values: Mapping[str, SlotValue], pieces: Mapping[tuple[SlotValue, ...], str]) -> None:
        """Several foreign tensors become one of ours."""
        first = next(iter(pieces.values()))
        wanted = list(itertools.product(*(slot.choices for slot in rule.joining)))
        missing = [" ".join(map(str, piece)) for piece in wanted if piece not in pieces]
        if missing:
            said = f"{shown(rule.text)}: beside {shown(first)} there is none for {' and '.join(missing)}"
            self._problems.append(said)
            return
        try:
            new = self._full(rule.ours(values)[0])
        except ValueError as error:
            self._problems.append(f"{shown(first)}: {error}")
            return
        parts = self._shapes([new], first)
        if parts:
            self._add(new, TensorRecipe(tuple(pieces[piece] for piece in wanted), rule.text, rule.change, 0, parts))

    def _shapes(self, ours: list[str], name: str) -> tuple[Shape, ...]:
        """Expected shapes of our tensors; () and a problem if there is no such tensor."""
        strange = [new for new in ours if new not in self._expected]
        if not strange:
            return tuple(self._expected[new] for new in ours)
        hint = nearest(strange[0], self._expected) if len(self._problems) < MOST_COMPARED else ""
        said = f"{shown(name)} becomes {shown(strange[0])}, which the configuration does not have{hint}"
        self._problems.append(said)
        return ()

    def _full(self, name: str) -> str:
        """Our name with its width: what is there for one width alone may be named without it."""
        widths = self._only.get(name, ())
        return widths[0] if len(widths) == 1 and name not in self._expected else name

    def _add(self, new: str, recipe: TensorRecipe) -> None:
        if new in self._recipes:
            before = self._recipes[new].sources[0]
            self._problems.append(f"{shown(before)} and {shown(recipe.sources[0])} both become {shown(new)}")
        self._recipes.setdefault(new, recipe)
