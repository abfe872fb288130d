"""Reads a key map from its file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snapgen_deploy.checkpoint.keymap.matching import KeyMap
from snapgen_deploy.checkpoint.keymap.pattern import Words, read_pattern, read_template
from snapgen_deploy.checkpoint.keymap.rule import KeyRule, read_rule
from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.documents import parse_json, parse_toml, refuse, shown
from snapgen_deploy.system.lfs import refuse_pointer

RESERVED = ("prefix", "regex", "drop", "words")  # no tensor of these names can have a rule of its own


def load_key_map(path: Path) -> KeyMap:
    """Read a key map; `.toml` is TOML, everything else JSON.

    Raises:
        BadInput: if the file cannot be read or is not a key map; one message for all problems.
    """
    refuse_pointer(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        data = parse_toml(text) if path.suffix.lower() == ".toml" else parse_json(text)
    except OSError as error:
        raise BadInput(f"key map {path}: cannot be read ({error.strerror}); give a JSON or TOML file") from None
    except ValueError as error:
        raise BadInput(f"key map {path}: neither JSON nor TOML ({error}); TOML needs the suffix .toml") from None
    if not isinstance(data, dict):
        raise BadInput(f"key map {path}: got a {type(data).__name__}, expected an object")
    return key_map_of(data, path)


def key_map_of(data: Mapping[str, Any], path: Path | None) -> KeyMap:
    """A key map from its decoded document; `path` names it in messages.

    Raises:
        BadInput: if it is not a key map; one message for all problems.
    """
    path = path or Path("draft")
    problems: list[str] = []
    words = _words(data.get("words", {}), problems)
    rules = _rules({key: value for key, value in data.items() if key not in RESERVED}, words, problems)
    tables = {key: _strings(key, data.get(key, {}), problems) for key in ("prefix", "regex")}
    drops = data.get("drop", [])
    if not isinstance(drops, list) or not all(isinstance(d, str) for d in drops):
        problems.append("drop must be a list of regular expressions")
        drops = []
    patterns = tuple((p, new) for p, new in ((_compile(k, v, problems), v) for k, v in tables["regex"].items()) if p)
    dropped = tuple(p for p in (_compile(d, "", problems) for d in drops) if p)
    refuse(f"key map {path}", problems)
    return KeyMap(path, rules, tables["prefix"], patterns, dropped)


def _rules(data: Mapping[str, Any], words: Mapping[str, Words], problems: list[str]) -> tuple[KeyRule, ...]:
    """The rules of single tensors first, then those with patterns, each in the order of the file."""
    found = []
    for key, value in data.items():
        try:
            found.append(read_rule(key, value, words))
        except ValueError as error:
            text = str(error)
            problems.append(f"{shown(key)}{'' if text.startswith('must') else ':'} {text}")
    return tuple(sorted(found, key=lambda rule: bool(rule.pattern.slots)))


def _words(table: object, problems: list[str]) -> dict[str, Words]:
    """The tables `[words.NAME]`."""
    if not isinstance(table, dict):
        problems.append("words must be tables, such as [words.block]")
        return {}
    found = {}
    for name, rows in table.items():
        try:
            found[name] = _words_of(name, rows)
        except ValueError as error:
            problems.append(f"words.{name[:40]}: {error}")
    return found


def _words_of(name: str, rows: object) -> Words:
    if not isinstance(rows, dict) or not rows or not all(isinstance(ours, str) for ours in rows.values()):
        raise ValueError("expected their words and ours, as strings")
    read = []
    for theirs, ours in rows.items():
        pattern = read_pattern(theirs, {})
        template = read_template(ours, {slot.name: slot for slot in pattern.slots})
        if template.free or not theirs:
            raise ValueError(f"{shown(theirs)}: expected one word for one word")
        read.append((pattern, template))
    return Words(name, tuple(read))


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
