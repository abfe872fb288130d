"""Parsing of option values that several commands share."""

from __future__ import annotations

import re

from snapgen_deploy.errors import BadInput


def parse_resolution(text: str) -> tuple[int, int]:
    """Parse a picture size, N or HEIGHTxWIDTH, to (height, width).

    >>> parse_resolution("1024"), parse_resolution("832x1216")
    ((1024, 1024), (832, 1216))

    Raises:
        BadInput: if the text has another form.
    """
    parts = text.lower().split("x")
    if len(parts) in (1, 2) and all(p.isdecimal() and len(p) <= 5 and int(p) > 0 for p in parts):
        return int(parts[0]), int(parts[-1])
    raise BadInput(f"resolution: got '{text}', expected N or HEIGHTxWIDTH in pixels, such as 1024 or 832x1216")


def parse_duration(text: str) -> float:
    """Parse a time to milliseconds.

    >>> parse_duration("1.5s"), parse_duration("1500ms")
    (1500.0, 1500.0)

    Raises:
        BadInput: if the text has another form, or the time is 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)", text.strip().lower())
    if found is None or not float(found[1]) > 0:
        raise BadInput(f"--max-latency: got '{text}', expected a time such as 1.5s or 1500ms")
    return float(found[1]) * (1000 if found[2] == "s" else 1)
