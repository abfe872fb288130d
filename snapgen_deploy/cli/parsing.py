"""What several commands read in options."""

from __future__ import annotations

import re

from snapgen_deploy.errors import BadInput


def parse_resolution(text: str) -> tuple[int, int]:
    """`1024` or `832x1216` (height x width) -> (height, width)."""
    parts = text.lower().split("x")
    if len(parts) in (1, 2) and all(p.isdecimal() and len(p) <= 5 and int(p) > 0 for p in parts):
        return int(parts[0]), int(parts[-1])
    raise BadInput(f"resolution: got '{text}', expected N or HEIGHTxWIDTH in pixels, such as 1024 or 832x1216")


def parse_duration(text: str) -> float:
    """`1.5s` or `1500ms` -> milliseconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)", text.strip().lower())
    if found is None or not float(found[1]) > 0:
        raise BadInput(f"--max-latency: got '{text}', expected a time such as 1.5s or 1500ms")
    return float(found[1]) * (1000 if found[2] == "s" else 1)
