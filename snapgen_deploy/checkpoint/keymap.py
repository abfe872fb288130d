r"""Key maps: from the tensor names of a foreign checkpoint to ours.

A key map is a JSON or TOML file. At the top level, foreign name -> our name, for one tensor each. Three tables besides:

    "net.patch.weight" = "student.patch.weight"   # one tensor (TOML: quote names that have dots)
    drop = ['ema\..*', 'step']                     # tensors to leave out: regular expressions of whole names

    [prefix]                                       # replaces the beginning of a name
    "vae.decoder." = "decoder."

    [regex]                                        # replaces a whole name; \1 ... or \g<name> insert groups
    'net\.stage0\.(\d+)\.(.*)' = 'student.down.\1.\2'

For each name the first that applies is used, in this order: drop, one tensor, the longest prefix, the regular expressions
in the order of the file. A name to which no rule applies stays as it is. A rule that applies to no tensor is an error, and so
are two names that become the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.documents import LONGEST_NAME, cut, parse_json, parse_toml, refuse, shown

RESERVED = ("prefix", "regex", "drop")  # no tensor of these names can have a rule of its own


@dataclass(frozen=True)
class KeyMap:
    """Renaming rules, checked."""

    path: Path
    names: dict[str, str]
    prefixes: dict[str, str]
    patterns: tuple[tuple[re.Pattern[str], str], ...]
    drops: tuple[re.Pattern[str], ...]

    def apply(self, foreign: Iterable[str]) -> dict[str, str]:
        """Our name -> foreign name.

        Raises:
            BadInput: if two names become the same, or a rule applies to no tensor; one message for all problems.
        """
        unused = {f"drop {p.pattern!r}" for p in self.drops} | {f"regex {p.pattern!r}" for p, _ in self.patterns}
        unused |= {f"name {n!r}" for n in self.names} | {f"prefix {p!r}" for p in self.prefixes}
        ours: dict[str, str] = {}
        problems = []
        for name in foreign:
            rule, new = self._rename(name)
            unused.discard(rule)
            if new is None:
                continue
            if new in ours:
                problems.append(f"{shown(ours[new])} and {shown(name)} both become {shown(new)}")
            ours.setdefault(new, name)
        problems += [f"{cut(rule, LONGEST_NAME)} applies to no tensor" for rule in sorted(unused)]
        refuse(f"key map {self.path}", problems)
        return ours

    def _rename(self, name: str) -> tuple[str, str | None]:
        """The rule that applies ("" for none) and the new name (None: dropped)."""
        for pattern in self.drops:
            if pattern.fullmatch(name):
                return f"drop {pattern.pattern!r}", None
        if name in self.names:
            return f"name {name!r}", self.names[name]
        prefix = max((p for p in self.prefixes if name.startswith(p)), key=len, default=None)
        if prefix is not None:
            return f"prefix {prefix!r}", self.prefixes[prefix] + name[len(prefix) :]
        for pattern, template in self.patterns:
            match = pattern.fullmatch(name)
            if match:
                return f"regex {pattern.pattern!r}", match.expand(template)
        return "", name


def load_key_map(path: Path) -> KeyMap:
    """Read a key map; `.toml` is TOML, everything else JSON.

    Raises:
        BadInput: if the file cannot be read or is not a key map; one message for all problems.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        data = parse_toml(text) if path.suffix.lower() == ".toml" else parse_json(text)
    except OSError as error:
        raise BadInput(f"key map {path}: cannot be read ({error.strerror}); give a JSON or TOML file") from None
    except ValueError as error:
        raise BadInput(f"key map {path}: neither JSON nor TOML ({error}); TOML needs the suffix .toml") from None
    if not isinstance(data, dict):
        raise BadInput(f"key map {path}: got a {type(data).__name__}, expected an object")
    problems: list[str] = []
    names = {key: value for key, value in data.items() if isinstance(value, str) and key not in RESERVED}
    tables = {key: _strings(key, data.get(key, {}), problems) for key in ("prefix", "regex")}
    drops = data.get("drop", [])
    if not isinstance(drops, list) or not all(isinstance(d, str) for d in drops):
        problems.append("drop must be a list of regular expressions")
        drops = []
    known = {*RESERVED, *names}
    problems += [f"{shown(key)} must be our name, as a string (quote names that have dots)" for key in data if key not in known]
    patterns = tuple((p, new) for p, new in ((_compile(k, v, problems), v) for k, v in tables["regex"].items()) if p)
    dropped = tuple(p for p in (_compile(d, "", problems) for d in drops) if p)
    refuse(f"key map {path}", problems)
    return KeyMap(path, names, tables["prefix"], patterns, dropped)


def _strings(key: str, table: object, problems: list[str]) -> dict[str, str]:
    if isinstance(table, dict) and all(isinstance(v, str) for v in table.values()):
        return table
    problems.append(f"{key} must be a table of strings")
    return {}


def _compile(text: str, template: str, problems: list[str]) -> re.Pattern[str] | None:
    """The pattern, if it compiles and has the groups that the template names."""
    try:
        pattern = re.compile(text)
        end = "\n" if pattern.flags & re.VERBOSE else ""  # of a comment
        re.compile(f"{text}{end}|").fullmatch("").expand(template)  # type: ignore[union-attr]  # the empty branch always matches
    except (re.error, IndexError, OverflowError, RecursionError) as error:
        problems.append(f"regular expression {shown(text)} -> {shown(template)}: {error}")
        return None
    return pattern
