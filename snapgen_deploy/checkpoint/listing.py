"""Long lists of problems in one line."""

from __future__ import annotations

from collections.abc import Sequence

MOST_LISTED = 20


def listed(problems: Sequence[str]) -> str:
    """The problems joined by semicolons; beyond `MOST_LISTED`, how many more there are."""
    more = len(problems) - MOST_LISTED
    return "; ".join(problems[:MOST_LISTED]) + (f"; and {more} more" if more > 0 else "")
