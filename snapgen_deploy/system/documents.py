"""Strict reading of JSON and TOML from others; what is wrong with a document is reported in one short line."""

from __future__ import annotations

import json
import reprlib
import tomllib
from collections.abc import Callable, Sequence
from typing import Any

from snapgen_deploy.errors import BadInput, one_line

LONGEST_LINE = 300  # characters of a message, where the file's own path leaves room for what is wrong in it
LONGEST_VALUE, LONGEST_NAME, LONGEST_REASON = 60, 120, 160


class DuplicateName(ValueError):
    """An object or a table has a key twice: readers would disagree on which one counts."""


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON document, for `json.loads(..., object_pairs_hook=unique)`, which would silently take the last.

    Raises:
        DuplicateName: if a key occurs twice.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise DuplicateName(f"{key[:80]!r} occurs twice")
        found[key] = value
    return found


def parse_json(text: str | bytes) -> Any:
    """A JSON document; constants that JSON does not have (NaN, Infinity) are refused.

    Raises:
        ValueError: if it is not valid JSON; the message is a short reason.
        DuplicateName: if an object has a key twice.
    """
    return _parsed(lambda: json.loads(text, object_pairs_hook=unique, parse_constant=_no_constant))


def parse_toml(text: str) -> dict[str, Any]:
    """A TOML document.

    Raises:
        ValueError: if it is not valid TOML; the message is a short reason.
    """
    return dict(_parsed(lambda: tomllib.loads(text)))


def _parsed(parse: Callable[[], Any]) -> Any:
    try:
        return parse()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        if "int_max_str_digits" in str(error):
            raise ValueError("it holds a number of thousands of digits") from None
        raise


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")


def in_one_line(head: str, problems: Sequence[str], tail: str = "", rest: str = "") -> str:
    """`head: problem; problem` and `tail`: all problems if they fit, else the first ones, how many more, and `rest`.

    >>> in_one_line("profile a.toml", ["id: got nothing", "soc: got 3"], "; fix the file")
    'profile a.toml: id: got nothing; soc: got 3; fix the file'
    """
    room = max(LONGEST_LINE - len(f"{head}: ; and {len(problems)} more{rest}{tail}"), LONGEST_LINE // 2)
    said, left = _fitting(problems, "; ", room)
    return f"{head}: {said}{f'; and {left} more{rest}' if left else ''}{tail}"


def several(names: Sequence[str], separator: str = ", ", room: int = LONGEST_NAME) -> str:
    """Names that a file holds: all if they fit in `room` characters, else the first ones and how many more; or "none".

    >>> several(["small", "full"]), several([f"layer{i}" for i in range(900)], room=40)
    ('small, full', 'layer0, layer1, layer2 and 897 more')
    """
    said, left = _fitting(names, separator, room)
    if left:
        said, left = _fitting(names, separator, room - len(f" and {len(names)} more"))
    return (f"{said} and {left} more" if left else said) or "none"


def _fitting(texts: Sequence[str], separator: str, room: int) -> tuple[str, int]:
    """The first texts that fit, at least the beginning of one, and how many are left. A hostile text may hold line breaks."""
    said = ""
    for number, text in enumerate(texts):
        line = one_line(" ".join(text.split()))
        if number and len(said) + len(separator) + len(line) > room:
            return said, len(texts) - number
        said += separator * bool(number) + cut(line, room)
    return said, 0


def refuse(head: str, problems: Sequence[str], tail: str = "") -> None:
    """Report problems, if there are any.

    Raises:
        BadInput: if `problems` is not empty; one line, as `in_one_line` makes it.
    """
    if problems:
        raise BadInput(in_one_line(head, problems, tail))


def shown(value: object) -> str:
    """A value as a message shows it, always short."""
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = LONGEST_VALUE
    try:
        return cut(short.repr(value), LONGEST_VALUE)
    except ValueError:  # Python writes no integers of more than 4300 digits
        return "a number of thousands of digits"


def cut(text: str, length: int) -> str:
    """The text as `one_line`, shortened to `length` characters; the last three are then `...`."""
    text = one_line(text)
    return text if len(text) <= length else f"{text[: length - 3]}..."
